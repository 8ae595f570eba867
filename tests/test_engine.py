"""What makes the UNet fast must not change what it computes; the CPU's part of it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from gooddrag.adapt import NoAdapter
from gooddrag.backbones import loading
from gooddrag.backbones.adapter_layers import PerSampleWeights
from gooddrag.backbones.adapters import base_layer, modules_of
from gooddrag.backbones.base import Adapter
from gooddrag.backbones.blocks import FusedGroupNorm, compile_blocks, fuse
from gooddrag.backbones.mutual import MutualLayers
from gooddrag.backbones.stable_diffusion import StableDiffusion
from gooddrag.events import EditCallback
from gooddrag.memory import out_of_memory
from gooddrag.schedule import aldd
from gooddrag.tracking import PointTracking
from gooddrag.types import DragOperation
from tests import tiny
from tests.test_backbones import random_adapter
from tests.test_drag import SETTINGS, make_editor
from tests.tiny import engine_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PIPELINES: dict[str, dict[str, Any]] = {
    "epsilon": {},
    "v_prediction": {"prediction_type": "v_prediction"},
    "linear": {"linear_projection": True, "prediction_type": "v_prediction"},  # as SD 2.1
}
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}


@pytest.fixture(scope="module", params=PIPELINES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each kind of checkpoint in turn."""
    return tiny.make_pipeline(tmp_path_factory.mktemp("kind"), **PIPELINES[request.param])


def wide_adapter(backbone: StableDiffusion, seed: int) -> Adapter:
    """One that changes the 1 x 1 convolutions before attention too, as other tools' may."""
    adapter = random_adapter(backbone, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, _ in backbone.unet.named_modules():
        if name.endswith("proj_in"):
            adapter[f"{name}.lora_A.weight"] = torch.randn(3, tiny.WIDTH, generator=generator)
            adapter[f"{name}.lora_B.weight"] = torch.randn(tiny.WIDTH, 3, generator=generator) / 10
    return adapter


def step(backbone: StableDiffusion, adapters: Sequence[Adapter] | None) -> tuple[Tensor, ...]:
    """Noise, features and the gradient to z, two samples with two latents each."""
    z = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    z = z.to(backbone.latent_dtype).requires_grad_()
    with backbone.adapted(adapters):
        eps, features = backbone.noise_and_features(z, 500, backbone.embed(["a cat", "a dog"]))
        (gradient,) = torch.autograd.grad(eps.square().sum() + features.square().sum(), z)
    return eps.detach(), features.detach(), gradient


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Equal up to a part of each tensor's largest element."""
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= tolerance * other.abs().max()


def weights_of(backbone: StableDiffusion) -> dict[str, Tensor]:
    """A copy of the UNet's own weights, named as if no LoRA layers stood round them."""
    return {
        name.replace(".base_layer", ""): weight.detach().clone()
        for name, weight in backbone.unet.named_parameters()
        if ".lora_" not in name
    }


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To the bit."""
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class TestSameNumbers:
    """Every switch that a CPU has, against `engine=plain`."""

    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_noise_features_and_gradient(self, folder: Path, dtype: str) -> None:
        plain = tiny.load(folder, dtype, engine=engine_of("plain"))
        one, other = (random_adapter(plain, seed) for seed in (1, 2))
        cases = (None, [one, one], [one, other])  # bare, merged where that is on, stacked
        expected = [step(plain, adapters) for adapters in cases]
        assert not torch.allclose(expected[0][0], expected[1][0], rtol=0.01)
        engines = [
            engine_of("default"),
            replace(engine_of("plain"), channels_last=True),
            replace(engine_of("plain"), frozen_convolutions=True),
            replace(engine_of("default"), channels_last=True, frozen_convolutions=True),
        ]
        for engine in engines:
            backbone = tiny.load(folder, dtype, engine=engine)
            for adapters, numbers in zip(cases, expected, strict=True):
                assert_same(step(backbone, adapters), numbers, TOLERANCE[dtype])

    @pytest.mark.parametrize("channels_last", [False, True])
    def test_adapters_of_convolutions(self, tiny_folder: Path, channels_last: bool) -> None:
        plain = tiny.load(tiny_folder, "float64", engine=engine_of("plain"))
        engine = replace(engine_of("default"), channels_last=channels_last)
        backbone = tiny.load(tiny_folder, "float64", engine=engine)
        one, other = (wide_adapter(plain, seed) for seed in (1, 2))
        before = weights_of(backbone)
        for adapters in ([one, one], [one, other]):
            assert_same(step(backbone, adapters), step(plain, adapters), 1e-10)
        assert_equal(weights_of(backbone), before)

    def test_channels_last_is_so_throughout(self, folder: Path) -> None:
        """Behind transformer blocks too, where diffusers itself turns every map round."""
        backbone = tiny.load(folder, engine=replace(engine_of("plain"), channels_last=True))
        turned: list[str] = []

        def look(module: nn.Conv2d, args: tuple[Tensor], name: str) -> None:
            if not args[0].is_contiguous(memory_format=torch.channels_last):
                turned.append(name)

        for name, module in backbone.unet.named_modules():
            if isinstance(module, nn.Conv2d) and name != "conv_in":
                assert module.weight.is_contiguous(memory_format=torch.channels_last)
                module.register_forward_pre_hook(partial(look, name=name))
        z = torch.randn(2, 4, 32, 32)  # of 8 x 8 the smallest maps are one pixel: no layout
        backbone.noise(z, 500, backbone.embed([""]))
        assert not turned

    def test_channels_last_leaves_the_weights(self, folder: Path) -> None:
        plain = tiny.load(folder, engine=engine_of("plain"))
        backbone = tiny.load(folder, engine=replace(engine_of("plain"), channels_last=True))
        assert_equal(backbone.unet.state_dict(), plain.unet.state_dict())
        assert backbone.fingerprint() == plain.fingerprint()

    def test_low_memory_with_a_merged_adapter(self, tiny_folder: Path) -> None:
        """Checkpointed passes run a second time in backward: the adapter has to be there still."""
        plain = tiny.load(tiny_folder, "float64", engine=engine_of("plain"))
        backbone = tiny.load(tiny_folder, "float64", low_memory=True, engine=engine_of("default"))
        adapter = random_adapter(plain, 1)
        assert_same(step(backbone, [adapter] * 2), step(plain, [adapter] * 2), 1e-10)


class TestFusedNorms:
    def test_same_outputs_and_gradient(self, folder: Path) -> None:
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").double().eval()
        unet.requires_grad_(False)
        fused = deepcopy(unet)
        fuse(fused, 0)
        assert any(isinstance(module, FusedGroupNorm) for module in fused.modules())
        assert not any(isinstance(module, nn.GroupNorm) for module in fused.modules())
        x, text = torch.randn(2, 4, 8, 8).double(), torch.randn(2, 5, tiny.WIDTH).double()
        results = []
        for model in (unet, fused):
            z = x.clone().requires_grad_()
            output = model(z, torch.tensor([300, 700]), encoder_hidden_states=text).sample
            (gradient,) = torch.autograd.grad(output.square().sum(), z)
            results.append((output, gradient))
        assert_same(*results, tolerance=1e-10)

    def test_names_values_and_fingerprint_stay(self, folder: Path) -> None:
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        before, names = loading.fingerprint(unet), list(unet.state_dict())
        values = {name: weight.clone() for name, weight in unet.state_dict().items()}
        fuse(unet, 0)
        assert list(unet.state_dict()) == names
        assert_equal(unet.state_dict(), values)
        assert loading.fingerprint(unet) == before

    def test_adapters_still_fit(self, tiny_folder: Path, backbone64: StableDiffusion) -> None:
        fused = tiny.load(tiny_folder, "float64")
        fuse(fused.unet, 0)
        one, other = (random_adapter(backbone64, seed) for seed in (1, 2))
        for adapters in ([one, one], [one, other]):
            assert_same(step(fused, adapters), step(backbone64, adapters), 1e-10)

    def test_text_is_projected_anew_in_each_pass(
        self, tiny_folder: Path, backbone64: StableDiffusion
    ) -> None:
        """Of all layers in one product, with the weights that the pass finds."""
        fused = tiny.load(tiny_folder, "float64")
        fuse(fused.unet, 0)
        adapter, text = random_adapter(backbone64, 1), backbone64.embed(["a cat"])
        z = torch.randn(1, 4, 8, 8).double()
        for adapters in (None, [adapter], None):
            found = []
            for backbone in (fused, backbone64):
                with backbone.adapted(adapters), torch.no_grad():
                    found.append(backbone.unet(z, 500, encoder_hidden_states=text).sample)
            assert_same(found[:1], found[1:], 1e-10)

    def test_adapters_of_the_time_embedding(
        self, tiny_folder: Path, backbone64: StableDiffusion
    ) -> None:
        """Which all blocks project in one product: merged, beside it, and not at all again."""
        fused = tiny.load(tiny_folder, "float64")
        fuse(fused.unet, 0)
        one, other = (time_adapter(backbone64, seed) for seed in (1, 2))
        for adapters in (None, [one, one], [one, other], None, [other, other]):
            assert_same(step(fused, adapters), step(backbone64, adapters), 1e-10)
        found, expected = (lora_gradient(b, [one]) for b in (fused, backbone64))
        assert_same([found], [expected], 1e-10)


def time_adapter(backbone: StableDiffusion, seed: int) -> Adapter:
    """One of the time embedding's projections alone, as other tools may make."""
    adapter, generator = {}, torch.Generator().manual_seed(seed)
    for name, module in backbone.unet.named_modules():
        if name.endswith("time_emb_proj"):
            size = module.out_features, module.in_features
            adapter[f"{name}.lora_A.weight"] = torch.randn(3, size[1], generator=generator)
            adapter[f"{name}.lora_B.weight"] = torch.randn(size[0], 3, generator=generator) / 10
    return adapter


class TestMerging:
    @pytest.fixture(params=["float32", "bfloat16"])
    def merging(self, request: pytest.FixtureRequest, tiny_folder: Path) -> StableDiffusion:
        return tiny.load(tiny_folder, request.param)

    def test_weights_come_back_to_the_bit(self, merging: StableDiffusion) -> None:
        adapter, before = random_adapter(merging, 1), weights_of(merging)
        with merging.adapted([adapter]) as stacks:
            assert not stacks
            inside = weights_of(merging)
        changed = {name for name in before if not torch.equal(before[name], inside[name])}
        assert changed == {f"{name}.weight" for name in modules_of(adapter)}
        assert_equal(weights_of(merging), before)

    def test_also_when_the_body_raises(self, merging: StableDiffusion) -> None:
        before = weights_of(merging)
        with pytest.raises(KeyboardInterrupt), merging.adapted([random_adapter(merging, 1)]):
            raise KeyboardInterrupt
        assert_equal(weights_of(merging), before)

    @pytest.mark.parametrize("what", ["name", "shape"])
    def test_also_when_a_later_layer_is_refused(self, merging: StableDiffusion, what: str) -> None:
        """An adapter of another model, whose first layers fit."""
        adapter, before = random_adapter(merging, 1), weights_of(merging)
        last = f"{modules_of(adapter)[-1]}.lora_A.weight"
        if what == "name":
            adapter |= {f"zzz.{key}": adapter[key] for key in list(adapter)[:2]}
        else:
            adapter[last] = torch.cat((adapter[last], adapter[last]), dim=1)
        with pytest.raises(ValueError, match="another model"), merging.adapted([adapter]):
            pass
        assert_equal(weights_of(merging), before)

    def test_one_for_all_or_one_for_each(self, backbone: StableDiffusion) -> None:
        one, other, before = *(random_adapter(backbone, i) for i in (1, 2)), weights_of(backbone)
        with backbone.adapted([one, one]) as stacks:
            assert not stacks
            assert not backbone.adapters.own
        with backbone.adapted([one, other]) as stacks:
            assert not stacks
            assert backbone.adapters.own
            assert not backbone.adapters.flat.requires_grad
            assert_equal(weights_of(backbone), before)
        with backbone.adapted([one]) as stacks:
            assert not stacks
            assert not torch.equal(
                weights_of(backbone)[f"{modules_of(one)[0]}.weight"],
                before[f"{modules_of(one)[0]}.weight"],
            )
        assert_equal(weights_of(backbone), before)

    def test_not_if_switched_off(self, tiny_folder: Path) -> None:
        backbone = tiny.load(tiny_folder, engine=engine_of("plain"))
        adapter, before = random_adapter(backbone, 1), weights_of(backbone)
        with backbone.adapted([adapter, adapter]) as stacks:
            assert stacks.keys() == adapter.keys()
            assert_equal(weights_of(backbone), before)


def lora_gradient(backbone: StableDiffusion, adapters: Sequence[Adapter]) -> Tensor:
    """Of a loss to all LoRA matrices, two latents for each adapter, different from each other."""
    generator = torch.Generator().manual_seed(7)
    z = torch.randn(2 * len(adapters), 4, 8, 8, generator=generator).to(backbone.latent_dtype)
    text = backbone.embed(["a cat", "a dog"][: len(adapters)])
    with backbone.adapted(adapters, trainable=True):
        loss = backbone.noise(z, 500, text).square().sum()
        (gradient,) = torch.autograd.grad(loss, backbone.adapters.flat)
    return gradient


class TestTraining:
    """An adapter is trained within the weights, those of several pictures beside them."""

    @pytest.mark.parametrize("fused", [False, True])
    def test_the_same_gradient(self, folder: Path, fused: bool) -> None:
        plain = tiny.load(folder, "float64", engine=engine_of("plain"))
        merging = tiny.load(folder, "float64", engine=engine_of("default"))
        if fused:
            fuse(merging.unet, 0)
        one, other = (random_adapter(merging, seed) for seed in (1, 2))
        before = weights_of(merging)
        for adapters in ([one], [one, other], [other]):  # from the second on amid PEFT's layers
            found, expected = (lora_gradient(b, adapters) for b in (merging, plain))
            assert (expected != 0).double().mean() > 0.9  # all but those of a single token
            assert_same([found], [expected], 1e-10)
        assert_equal(weights_of(merging), before)

    def test_where_it_is_and_where_not(self, tiny_folder: Path) -> None:
        """Passes through checkpoints need the layers' own weights to stay."""
        for low_memory in (False, True):
            backbone = tiny.load(tiny_folder, low_memory=low_memory)
            one, other = (random_adapter(backbone, seed) for seed in (1, 2))
            for adapters in ([one], [one, other]):
                with backbone.adapted(adapters, trainable=True):
                    assert backbone.adapters.summed is not low_memory
                assert not backbone.adapters.summed
            with backbone.adapted([one, other]):
                assert backbone.adapters.own is not low_memory

    def test_layers_are_their_own_again(self, backbone: StableDiffusion) -> None:
        adapters = [random_adapter(backbone, seed) for seed in (1, 2)]
        for trainable in (False, True):
            with backbone.adapted(adapters, trainable):
                kinds = {type(base_layer(backbone.unet, name)) for name in modules_of(adapters[0])}
                assert kinds == {PerSampleWeights}
                backbone.noise(torch.randn(2, 4, 8, 8), 500, backbone.embed(["a cat", "a dog"]))
            for name in modules_of(adapters[0]):
                layer = base_layer(backbone.unet, name)
                assert type(layer) is nn.Linear
                assert not hasattr(layer, "own")


def test_nothing_of_a_pass_that_failed_stays_with_low_memory(folder: Path) -> None:
    """It would keep the whole pass alive, for want of whose memory another is tried."""
    backbone = tiny.load(folder, engine=replace(engine_of("plain"), channels_last=True))
    fuse(backbone.unet, 0)
    blocks = [m for m in backbone.unet.modules() if isinstance(m, Transformer2DModel)]

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    hook = blocks[-1].transformer_blocks[0].register_forward_pre_hook(fail)
    z = torch.randn(1, 4, 8, 8, requires_grad=True)
    with pytest.raises(torch.OutOfMemoryError):
        backbone.noise_and_features(z, 500, backbone.embed([""]))
    hook.remove()
    assert blocks[-1].residual.grad_fn is not None
    backbone.save_memory()
    assert all(block.residual is None for block in blocks)
    assert backbone._passes._features is None


class TestStacks:
    def test_trainable_ones_ask_for_gradients_while_in_use(self, backbone: StableDiffusion) -> None:
        adapter, before = random_adapter(backbone, 1), weights_of(backbone)
        with backbone.adapted([adapter], trainable=True) as stacks:
            flat = backbone.adapters.flat
            assert stacks.keys() == adapter.keys()
            assert isinstance(flat, nn.Parameter)
            assert flat.requires_grad
            text = backbone.embed([""])
            backbone.noise(torch.randn(1, 4, 8, 8), 500, text).square().sum().backward()
            assert flat.grad is not None
            with torch.no_grad():
                flat.zero_()
            assert not any(stack.any() for stack in stacks.values())
        assert not flat.requires_grad
        assert flat.grad is None
        assert_equal(weights_of(backbone), before)

    def test_the_next_of_the_same_shape_lie_where_the_last_did(
        self, backbone: StableDiffusion
    ) -> None:
        """CUDA graphs read these addresses."""
        a, b, c, d = (random_adapter(backbone, seed) for seed in (1, 2, 3, 4))
        for trainable in (False, True):
            addresses = []
            for adapters in ([a, b], [c, d], [d, a]):
                with backbone.adapted(adapters, trainable) as stacks:
                    addresses.append(backbone.adapters.flat.data_ptr())
                    for key, stack in stacks.items():
                        assert torch.equal(stack, torch.stack([x[key] for x in adapters]))
                with backbone.adapted([a]):  # merged in between
                    pass
            assert len(set(addresses)) == 1

    def test_nothing_of_the_last_ones_is_left(
        self, backbone64: StableDiffusion, tiny_folder: Path
    ) -> None:
        """The same shape, other ranks, other numbers of adapters, other layers."""
        fresh = tiny.load(tiny_folder, "float64", engine=engine_of("plain"))
        a, b, c, d = (random_adapter(backbone64, seed) for seed in (1, 2, 3, 4))
        twice = [random_adapter(backbone64, seed, rank=6) for seed in (4, 5)]  # as large as four
        few = [{k: w for k, w in x.items() if "to_q" in k} for x in (a, b)]
        for adapters in ([a, b], [c, a], twice, [a, b, c, d], [b, c], few, [a, c]):
            assert_same(step(backbone64, adapters), step(fresh, adapters), 1e-10)
        assert_same(step(backbone64, None), step(fresh, None), 1e-10)

    def test_masks_of_mutual_attention_stay_too(self, backbone: StableDiffusion) -> None:
        layers = MutualLayers(backbone.unet)
        assert layers.state() == (None, ())
        places = []
        for chosen in ([True, False], [False, True], [True, True], [True, False]):
            with layers.mutual(torch.tensor(chosen), 10, CPU):
                start, (mask,) = layers.state()
                assert (start, mask.tolist()) == (10, chosen)
                places.append(mask.data_ptr())
        with layers.mutual(torch.tensor([True, False, True]), 10, CPU):
            assert layers.state()[1][0].tolist() == [True, False, True]
        assert len(set(places)) == 1
        with layers.mutual(torch.tensor([False, False]), 10, CPU):
            assert layers.state() == (None, ())
        assert layers.state() == (None, ())


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value"),
        [("graphs", "yes"), ("channels_last", "maybe"), ("fused_kernels", "on"), ("max_graphs", 0)],
    )
    def test_unknown_words(self, name: str, value: object) -> None:
        with pytest.raises(ValueError, match=rf"engine\.{name} .* found {value!r}$"):
            replace(engine_of("default"), **{name: value})

    @pytest.mark.parametrize("name", ["graphs", "fused_kernels"])
    def test_what_a_cpu_cannot_do(self, tiny_folder: Path, name: str) -> None:
        engine = replace(engine_of("default"), **{name: True})
        with pytest.raises(ValueError, match=rf"engine\.{name}=true needs CUDA.*cpu") as caught:
            tiny.load(tiny_folder, engine=engine)
        assert "\n" not in str(caught.value)
        assert f"engine.{name}=auto" in str(caught.value)

    def test_auto(self) -> None:
        cpu = engine_of("default").on(CPU, torch.float32)
        assert (cpu.graphs, cpu.channels_last, cpu.fused_kernels) == (False, False, False)
        cuda = engine_of("default").on(CUDA, torch.float64)
        assert (cuda.graphs, cuda.channels_last, cuda.fused_kernels) == (True, True, False)

    def test_words_other_than_auto_are_obeyed(self) -> None:
        chosen = replace(
            engine_of("default"),
            graphs=False,
            channels_last=True,
            fused_kernels=False,
            frozen_convolutions=False,
        )
        for device in (CPU, CUDA):
            assert chosen.on(device, torch.float32) == chosen

    def test_plain_switches_everything_off(self) -> None:
        plain = engine_of("plain")
        for device in (CPU, CUDA):
            on = plain.on(device, torch.float32)
            assert not any(
                (on.graphs, on.channels_last, on.fused_kernels, on.merge_adapters, on.compile)
            )


class TestOutOfMemory:
    def test_torch_on_a_cpu(self) -> None:
        with pytest.raises(RuntimeError) as caught:
            torch.empty(1 << 50)
        assert out_of_memory(caught.value)

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            MemoryError(),
            RuntimeError("Triton Error [CUDA]: out of memory"),
            RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
            RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        ],
        ids=lambda error: f"{type(error).__name__}: {error}"[:40],
    )
    def test_what_is(self, error: Exception) -> None:
        assert out_of_memory(error)

    @pytest.mark.parametrize(
        "error",
        [
            None,
            RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
            RuntimeError("CUDA error: an illegal memory access was encountered"),
            ValueError("out of memory"),
        ],
        ids=str,
    )
    def test_what_is_not(self, error: Exception | None) -> None:
        assert not out_of_memory(error)


class ReadsPerOperation(EditCallback):
    """How many tensors of handles have been read from the device, operation by operation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
        self.reads, self.after = 0, []
        cpu, to = Tensor.cpu, Tensor.to

        def counting_cpu(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.reads += tensor.shape == shape
            return cpu(tensor, *args, **kwargs)

        def counting_to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.reads += tensor.shape == shape and args[0] == "cpu"
            return to(tensor, *args, **kwargs)

        monkeypatch.setattr(Tensor, "cpu", counting_cpu)
        monkeypatch.setattr(Tensor, "to", counting_to)

    def on_drag_operation(self, operation: DragOperation) -> None:
        self.after.append(self.reads)


def test_handles_are_read_once_per_operation(
    backbone: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reading makes the host wait for the device."""
    sample = tiny.make_sample(seed=3, pairs=3)
    editor = make_editor(
        backbone,
        aldd(K=4, B=2),
        adapt=NoAdapter(),
        tracking=PointTracking(r2=3, when="stale", on_entry=False),
        settings=replace(SETTINGS, patience=None),
    )
    counting = ReadsPerOperation(monkeypatch, (3, 2))
    editor([sample], callbacks=[counting])
    assert len(counting.after) == 4
    first = counting.after[0]
    assert counting.after == [first, first + 1, first + 2, first + 3]


class TestInUse:
    def test_a_second_entry_is_refused_and_the_first_undone(self, tiny_folder: Path) -> None:
        backbone = tiny.load(tiny_folder)
        before = backbone.fingerprint()
        one, other = (random_adapter(backbone, seed) for seed in (1, 2))
        with backbone.adapted([one]):
            with pytest.raises(ValueError, match="in use already"), backbone.adapted([other]):
                pass
            with pytest.raises(ValueError, match="in use already"), backbone.adapted([one, other]):
                pass
        assert tiny.load(tiny_folder).fingerprint() == before
        assert loading.fingerprint(backbone.unet, backbone.vae, backbone.text_encoder) == before

    def test_the_fingerprint_is_that_of_the_own_weights(self, tiny_folder: Path) -> None:
        backbone = tiny.load(tiny_folder)
        with (
            backbone.adapted([random_adapter(backbone, 1)]),
            pytest.raises(ValueError, match="in use"),
        ):
            backbone.fingerprint()
        assert backbone.fingerprint() == tiny.load(tiny_folder).fingerprint()


COMPILED = replace(engine_of("default"), compile=True)


@pytest.mark.slow  # blocks are traced, or made into kernels, once for each kind of pass
class TestCompile:
    @pytest.mark.parametrize("low_memory", [False, True])
    def test_same_outputs_and_gradient(self, tiny_folder: Path, low_memory: bool) -> None:
        plain = tiny.load(tiny_folder, "float64", engine=engine_of("plain"))
        backbone = tiny.load(tiny_folder, "float64", low_memory=low_memory, engine=COMPILED)
        one, other = (random_adapter(plain, seed) for seed in (1, 2))
        with tiny.something_compiled():
            for adapters in (None, [one, one], [one, other]):
                assert_same(step(backbone, adapters), step(plain, adapters), 1e-10)

    @pytest.mark.parametrize("fused", [False, True])
    def test_in_all_that_an_edit_asks_of_the_unet(
        self, tiny_folder: Path, fused: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Traced alone: whole, but where the types of our own functions are checked in tests."""
        traced = partial(torch.compile, backend="aot_eager", fullgraph=not fused)
        monkeypatch.setattr(torch, "compile", traced)
        plain = tiny.load(tiny_folder, "float64", engine=engine_of("plain"))
        backbone = tiny.load(tiny_folder, "float64", engine=engine_of("default"))
        if fused:
            fuse(backbone.unet, 0, join_text=False)
        compile_blocks(backbone.unet)
        one, other = (random_adapter(plain, seed) for seed in (1, 2))
        with tiny.something_compiled():
            for adapters in (None, [one, one], [one, other]):
                found = []
                for model in (backbone, plain):
                    with model.mutual_attention(torch.tensor([True, False]), start_layer=1):
                        found.append(step(model, adapters))
                    with model.adapted(adapters or [one], trainable=True) as stacks:
                        eps = model.noise(torch.ones(2, 4, 8, 8).double(), 500, model.embed([""]))
                        found.append(torch.autograd.grad(eps.square().sum(), model.adapters.flat))
                        assert stacks
                assert_same(found[0], found[2], 1e-10)
                assert_same(found[1], found[3], 1e-10)


@pytest.mark.parametrize("word", ["auto", "no", "maybe"])
@pytest.mark.parametrize("name", ["merge_adapters", "compile"])
def test_switches_are_true_or_false(name: str, word: str) -> None:
    with pytest.raises(ValueError, match=f"engine.{name} must be true or false"):
        replace(engine_of("default"), **{name: word})


def test_frozen_convolutions_keep_less(tiny_folder: Path) -> None:
    """Bytes that wait for the backward; the weights do not count, they are there anyway."""
    kept = []
    for frozen in (False, True):
        engine = replace(engine_of("plain"), frozen_convolutions=frozen)
        backbone, held = tiny.load(tiny_folder, engine=engine), {}
        own = {weight.data_ptr() for weight in backbone.unet.parameters()}

        def keep(x: Tensor, held: dict[int, int] = held, own: set[int] = own) -> Tensor:
            if x.data_ptr() not in own:
                held[x.data_ptr()] = x.untyped_storage().nbytes()
            return x

        z = torch.randn(1, 4, 8, 8, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            backbone.noise_and_features(z, 500, backbone.embed([""]))
        kept.append(sum(held.values()))
    assert kept[1] < 0.9 * kept[0]
