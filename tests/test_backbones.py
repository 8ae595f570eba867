"""Stable Diffusion as a backbone: features, mutual attention, adapters, precision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from gooddrag.backbones.adapter_files import ADAPTER_FILE, load_adapter, save_adapter
from gooddrag.backbones.adapters import initial_adapter, modules_of, unstack
from gooddrag.backbones.base import Adapter
from gooddrag.backbones.loading import _byte_sums
from gooddrag.backbones.mutual import self_attention_layers
from gooddrag.backbones.precision import choose_device, choose_dtype, scale_gradient
from gooddrag.backbones.stable_diffusion import StableDiffusion
from tests import tiny

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def random_adapter(backbone: StableDiffusion, seed: int, rank: int = 3) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    adapter = initial_adapter(backbone.unet, rank, TARGETS, generator)
    return {k: w + 0.1 * torch.randn(w.shape, generator=generator) for k, w in adapter.items()}


def latents(count: int = 1) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(7))


class TestUnet:
    def test_features_are_the_third_up_block(self, backbone: StableDiffusion) -> None:
        seen: list[torch.Tensor] = []
        block = backbone.unet.up_blocks[2]
        handle = block.register_forward_hook(lambda m, a, out: seen.append(out))
        text = backbone.embed([""])
        eps, features = backbone.noise_and_features(latents(), 500, text)
        handle.remove()
        assert torch.equal(features, seen[0])
        assert torch.equal(eps, backbone.noise(latents(), 500, text))

    def test_nothing_is_trained_by_dragging(self, backbone: StableDiffusion) -> None:
        z = latents().requires_grad_()
        eps, features = backbone.noise_and_features(z, 500, backbone.embed([""]))
        (eps.sum() + features.sum()).backward()
        assert z.grad is not None
        assert all(p.grad is None for p in backbone.unet.parameters())

    def test_text_goes_with_its_sample(self, backbone: StableDiffusion) -> None:
        """A batch of two samples with two latents each reads (a, a, b, b)."""
        text, z = backbone.embed(["a cat", "a dog"]), latents(4)
        together = backbone.noise(z, 500, text)
        for i in range(4):
            alone = backbone.noise(z[i : i + 1], 500, text[i // 2 : i // 2 + 1])
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)

    def test_v_prediction_becomes_eps(self, tmp_path: Path, backbone: StableDiffusion) -> None:
        v = tiny.load(tiny.make_pipeline(tmp_path / "v", prediction_type="v_prediction"))
        z, t = latents(), 500
        output = backbone.noise(z, t, backbone.embed([""]))  # the same weights, read as eps
        a = v.alphas_cumprod[t]
        expected = a**0.5 * output + (1 - a) ** 0.5 * z
        torch.testing.assert_close(v.noise(z, t, v.embed([""])), expected)

    def test_float64_is_float64_throughout(self, backbone64: StableDiffusion) -> None:
        eps, features = backbone64.noise_and_features(
            latents().double(), 500, backbone64.embed([""])
        )
        assert eps.dtype == features.dtype == torch.float64

    def test_low_memory_gives_the_same_gradient(self, tiny_folder: Path) -> None:
        gradients = []
        for low_memory in (False, True):
            backbone = tiny.load(tiny_folder, low_memory=low_memory)
            z = latents().requires_grad_()
            eps, features = backbone.noise_and_features(z, 500, backbone.embed([""]))
            (eps.abs().sum() + features.abs().sum()).backward()
            gradients.append(z.grad)
        torch.testing.assert_close(*gradients)

    def test_half_precision_keeps_latents_in_float32(self, tiny_folder: Path) -> None:
        half = tiny.load(tiny_folder, "bfloat16")
        z = latents().requires_grad_()
        eps, features = half.noise_and_features(z, 500, half.embed([""]))
        eps.sum().backward()
        assert half.unet.dtype == torch.bfloat16
        assert eps.dtype == features.dtype == z.grad.dtype == torch.float32


class TestVae:
    def test_small_pictures_pass_several_at_a_time(
        self, backbone: StableDiffusion, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As many as have no larger maps than one large one; the pictures are the same."""
        images = torch.rand(5, 3, 64, 64)
        batches: list[int] = []
        handle = backbone.vae.decoder.register_forward_hook(
            lambda module, args, output: batches.append(len(output))
        )
        mean, std = backbone.encode(images)
        together = backbone.decode(mean)
        values = backbone.vae.config.block_out_channels[0] * 64 * 64
        monkeypatch.setattr("gooddrag.backbones.stable_diffusion.VAE_VALUES", 2 * values)
        for one, other in zip(backbone.encode(images), (mean, std), strict=True):
            torch.testing.assert_close(one, other)
        torch.testing.assert_close(backbone.decode(mean), together)
        handle.remove()
        assert batches == [5, 2, 2, 1]

    def test_encoding_is_scaled_and_decoding_undoes_it(self, backbone: StableDiffusion) -> None:
        image = torch.rand(1, 3, 64, 64)
        mean, std = backbone.encode(image)
        posterior = backbone.vae.encode(image * 2 - 1).latent_dist
        scale = backbone.vae.config.scaling_factor
        torch.testing.assert_close(mean, posterior.mean * scale)
        torch.testing.assert_close(std, posterior.std * scale)
        expected = (backbone.vae.decode(posterior.mean).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(backbone.decode(mean), expected)


class TestMutualAttention:
    def test_sixteen_layers_in_forward_order(self, backbone: StableDiffusion) -> None:
        layers = self_attention_layers(backbone.unet)
        order: list[str] = []
        handles = [
            layer.register_forward_hook(lambda *_, name=name: order.append(name))
            for name, layer in layers.items()
        ]
        backbone.noise(latents(), 500, backbone.embed([""]))
        for handle in handles:
            handle.remove()
        assert order == list(layers)
        assert len(order) == 16
        assert [name.split(".")[0] for name in order] == (
            ["down_blocks"] * 6 + ["mid_block"] + ["up_blocks"] * 9
        )
        assert all(name.startswith(("up_blocks.2", "up_blocks.3")) for name in order[10:])

    def test_keys_and_values_come_from_the_unedited_branch(self, backbone: StableDiffusion) -> None:
        """Written out by hand for one layer: softmax(q_edited k_unedited) v_unedited."""
        name = "up_blocks.3.attentions.2.transformer_blocks.0.attn1"
        layer = self_attention_layers(backbone.unet)[name]
        inputs: list[torch.Tensor] = []
        outputs: list[torch.Tensor] = []

        def keep(module: object, args: tuple, output: torch.Tensor) -> None:
            inputs.append(args[0])
            outputs.append(output)

        handle = layer.register_forward_hook(keep)
        with backbone.mutual_attention(torch.tensor([True]), 15):
            backbone.noise(latents(2), 500, backbone.embed([""]))
        handle.remove()
        x = inputs[0]
        source = x[:1].expand(2, -1, -1)
        q, k, v = layer.to_q(x), layer.to_k(source), layer.to_v(source)
        q, k, v = (y.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for y in (q, k, v))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
        expected = layer.to_out[0]((weights @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(outputs[0], expected, rtol=1e-4, atol=1e-5)

    def test_only_the_edited_branch_of_chosen_samples_changes(
        self, backbone: StableDiffusion
    ) -> None:
        z, text = latents(4), backbone.embed(["", ""])
        plain = backbone.noise(z, 500, text)
        with backbone.mutual_attention(torch.tensor([False, True]), 10):
            mutual = backbone.noise(z, 500, text)
        same = [torch.allclose(plain[i], mutual[i], atol=1e-5) for i in range(4)]
        assert same == [True, True, True, False]
        assert torch.equal(backbone.noise(z, 500, text), plain)  # and it is off again

    def test_equal_branches_do_not_notice(self, backbone: StableDiffusion) -> None:
        z = latents().expand(2, -1, -1, -1)
        with backbone.mutual_attention(torch.tensor([True]), 0):
            first, second = backbone.noise(z, 500, backbone.embed([""]))
        torch.testing.assert_close(first, second)


class TestAdapters:
    def test_each_sample_has_its_own(self, backbone64: StableDiffusion) -> None:
        adapters = [random_adapter(backbone64, seed) for seed in (1, 2)]
        z, text = latents(4).double(), backbone64.embed(["", ""])
        plain = backbone64.noise(z, 500, text)
        with backbone64.adapted(adapters):
            together = backbone64.noise(z, 500, text)
        for i, adapter in enumerate(adapters):
            with backbone64.adapted([adapter]):
                alone = backbone64.noise(z[2 * i : 2 * i + 2], 500, text[:1])
            torch.testing.assert_close(together[2 * i : 2 * i + 2], alone, rtol=0, atol=1e-10)
        assert not torch.allclose(together, plain)
        assert torch.equal(backbone64.noise(z, 500, text), plain)

    def test_it_is_the_merged_weight(self, backbone64: StableDiffusion, tiny_folder: Path) -> None:
        """W x + B A x, with scale 1, equals (W + B A) x."""
        adapter = random_adapter(backbone64, 3)
        merged = tiny.load(tiny_folder, "float64")
        for name in modules_of(adapter):
            up, down = (adapter[f"{name}.lora_{part}.weight"].double() for part in "BA")
            merged.unet.get_submodule(name).weight += up @ down
        z, text = latents().double(), backbone64.embed([""])
        with backbone64.adapted([adapter]):
            found = backbone64.noise(z, 500, text)
        torch.testing.assert_close(found, merged.noise(z, 500, text), rtol=0, atol=1e-10)

    def test_a_new_adapter_changes_nothing(self, backbone: StableDiffusion) -> None:
        adapter = initial_adapter(backbone.unet, 4, TARGETS, torch.Generator().manual_seed(0))
        z, text = latents(), backbone.embed([""])
        plain = backbone.noise(z, 500, text)
        with backbone.adapted([adapter]) as weights:
            torch.testing.assert_close(backbone.noise(z, 500, text), plain)
            assert all(not weight.requires_grad for weight in weights.values())
        assert len(adapter) == 2 * 4 * 32

    def test_both_files_read_back(self, backbone: StableDiffusion, tmp_path: Path) -> None:
        adapter = random_adapter(backbone, 5)
        path = save_adapter(adapter, tmp_path)
        for file in (path, tmp_path, tmp_path / "adapter"):
            found = load_adapter(file)
            assert found.keys() == adapter.keys()
            assert all(torch.equal(found[key], adapter[key]) for key in adapter)
        assert not list(tmp_path.rglob(".*"))  # no temporary files left

    def test_diffusers_reads_both_files(
        self, backbone: StableDiffusion, tiny_folder: Path, tmp_path: Path
    ) -> None:
        adapter = random_adapter(backbone, 6)
        save_adapter(adapter, tmp_path)
        z, text = latents(), backbone.embed([""])
        with backbone.adapted([adapter]):
            expected = backbone.noise(z, 500, text)
        unet = UNet2DConditionModel.from_pretrained(tiny_folder, subfolder="unet")
        unet.load_lora_adapter(tmp_path / "adapter", prefix=None, weight_name=ADAPTER_FILE)
        found = unet(z, 500, encoder_hidden_states=text).sample
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
        pipe.load_lora_weights(tmp_path, weight_name=ADAPTER_FILE)
        found = pipe.unet(z, 500, encoder_hidden_states=text).sample
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_files_that_diffusers_writes_are_read(
        self, backbone: StableDiffusion, tiny_folder: Path, tmp_path: Path
    ) -> None:
        """PEFT's form with alpha != rank: the scale is folded in."""
        from peft import LoraConfig

        unet = UNet2DConditionModel.from_pretrained(tiny_folder, subfolder="unet")
        unet.add_adapter(
            LoraConfig(r=4, lora_alpha=8, target_modules=list(TARGETS), init_lora_weights=False)
        )
        unet.save_lora_adapter(tmp_path)
        z, text = latents(), backbone.embed([""])
        with backbone.adapted([load_adapter(tmp_path)]):
            found = backbone.noise(z, 500, text)
        expected = unet(z, 500, encoder_hidden_states=text).sample
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_a_pipelines_file_names_its_alpha(
        self, backbone: StableDiffusion, tiny_folder: Path, tmp_path: Path
    ) -> None:
        """save_lora_weights puts "unet." before the metadata's keys."""
        from peft import LoraConfig
        from peft.utils import get_peft_model_state_dict

        pipe = StableDiffusionPipeline.from_pretrained(tiny_folder)
        config = LoraConfig(
            r=4, lora_alpha=16, target_modules=list(TARGETS), init_lora_weights=False
        )
        pipe.unet.add_adapter(config)
        pipe.save_lora_weights(
            tmp_path,
            unet_lora_layers=get_peft_model_state_dict(pipe.unet),
            unet_lora_adapter_metadata=config.to_dict(),
        )
        z, text = latents(), backbone.embed([""])
        with backbone.adapted([load_adapter(tmp_path)]):
            found = backbone.noise(z, 500, text)
        expected = pipe.unet(z, 500, encoder_hidden_states=text).sample
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_kohya_files_are_read(self, backbone: StableDiffusion, tmp_path: Path) -> None:
        """lora_unet_..., alpha beside each pair, the text encoder left out with a warning."""
        name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
        down, up = torch.randn(2, tiny.WIDTH), torch.randn(tiny.WIDTH, 2)
        stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
        text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
        state = {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": torch.tensor(1.0),
            f"{text}.lora_down.weight": torch.randn(2, tiny.WIDTH),
            f"{text}.lora_up.weight": torch.randn(tiny.WIDTH, 2),
            f"{text}.alpha": torch.tensor(1.0),
        }
        save_file(state, tmp_path / "kohya.safetensors")
        with pytest.warns(UserWarning, match="text encoder"):
            adapter = load_adapter(tmp_path / "kohya.safetensors")
        assert set(adapter) == {f"{name}.lora_A.weight", f"{name}.lora_B.weight"}
        torch.testing.assert_close(adapter[f"{name}.lora_A.weight"], down)
        torch.testing.assert_close(adapter[f"{name}.lora_B.weight"], up * 0.5)

    @pytest.mark.parametrize(
        ("content", "message"),
        [(None, "no LoRA file"), (b"garbage", "no readable LoRA"), ({}, "no LoRA weights")],
    )
    def test_files_that_are_none(self, tmp_path: Path, content: object, message: str) -> None:
        path = tmp_path / "x.safetensors"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            save_file({"unet.conv.weight": torch.zeros(1)}, path)
        with pytest.raises(ValueError, match=message):
            load_adapter(path)

    def test_an_adapter_of_another_model_is_refused(self, backbone: StableDiffusion) -> None:
        adapter = random_adapter(backbone, 1)
        wider = {k: torch.cat((w, w), dim=1) if "lora_A" in k else w for k, w in adapter.items()}
        with pytest.raises(ValueError, match="another model"), backbone.adapted([wider]):
            pass
        elsewhere = {f"nowhere.{key}": weight for key, weight in adapter.items()}
        with pytest.raises(ValueError, match="does not have"), backbone.adapted([elsewhere]):
            pass
        with backbone.adapted([adapter]):  # and the backbone is still good
            backbone.noise(latents(), 500, backbone.embed([""]))

    def test_unstacking_gives_what_was_installed(self, backbone: StableDiffusion) -> None:
        adapters = [random_adapter(backbone, seed) for seed in (1, 2, 3)]
        with backbone.adapted(adapters, trainable=True) as weights:
            found = unstack(weights)
        for one, other in zip(adapters, found, strict=True):
            assert all(torch.equal(one[key], other[key]) for key in one)

    def test_unknown_targets(self, backbone: StableDiffusion) -> None:
        with pytest.raises(ValueError, match="to_nowhere"):
            initial_adapter(backbone.unet, 2, ["to_nowhere"], torch.Generator())


class TestFingerprint:
    def test_any_weight_counts_and_adapters_do_not(self, tiny_folder: Path) -> None:
        backbone = tiny.load(tiny_folder)
        before = backbone.fingerprint()
        with backbone.adapted([random_adapter(backbone, 1)]):
            pass
        again = tiny.load(tiny_folder)
        assert backbone.fingerprint() == before == again.fingerprint()
        changed = tiny.load(tiny_folder)
        weight = changed.unet.conv_in.weight
        weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(9.0))
        assert changed.fingerprint() != before

    def test_chunks_do_not_matter(self) -> None:
        weight = torch.randn(70_001)
        whole, parts = _byte_sums(weight), _byte_sums(weight, chunk=65521)
        assert whole[0] == parts[0] == int(weight.view(torch.uint8).long().sum())
        swapped = weight.clone()
        swapped[[0, 69_000]] = weight[[69_000, 0]]
        assert _byte_sums(swapped)[0] == whole[0]
        assert _byte_sums(swapped)[1] != whole[1]


class TestPrecision:
    def test_choices(self) -> None:
        cpu = torch.device("cpu")
        assert choose_dtype("auto", cpu) == torch.float32
        assert choose_dtype("float64", cpu) == torch.float64
        with pytest.raises(ValueError, match=r"backbone\.dtype"):
            choose_dtype("float8", cpu)
        with pytest.raises(ValueError, match="MPS"):
            choose_dtype("float64", torch.device("mps"))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
    def test_a_device_that_is_not_there(self) -> None:
        with pytest.raises(ValueError, match="no CUDA device"):
            choose_device("cuda")

    def test_scaling_a_gradient(self) -> None:
        x = torch.tensor([2.0], requires_grad=True)
        y = scale_gradient(x * 3, 10.0)
        assert y.item() == 6
        y.backward()
        assert float(x.grad) == 30


def test_checkpoint_index_names_its_parts(tiny_folder: Path) -> None:
    index = json.loads((tiny_folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert load_file(tiny_folder / "vae" / "diffusion_pytorch_model.safetensors")
