"""The pretraining: identities of its parts, and whole stages at toy size on the CPU."""

import copy
import dataclasses
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import load_file
from transformers import CLIPTextModel

from gooddrag.pretrain import callbacks, data, evaluate, export, parts
from gooddrag.pretrain.vae_training import VaeTraining

CONF = Path(__file__).parents[1] / "conf"
FAMILIES = ("disc", "bar", "ramp")


def render_pictures(split, seed, indices, size=256, device="cpu"):
    """Draws discs, bars and ramps of random colours: a world small enough for a test."""
    pictures, families = [], []
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    for index in indices:
        generator = torch.Generator().manual_seed(index + 1000 * seed + 77 * (split == "test"))
        ink, paper, place = torch.rand(3, 3, generator=generator)
        family = index % len(FAMILIES)
        cover = [
            ((x - place[0]) ** 2 + y**2 < 0.3).float(),
            ((x - place[0]).abs() < 0.2).float(),
            (x * place[0] + y * place[1]).clamp(0, 1),
        ][family]
        pictures.append(ink[:, None, None] * cover + paper[:, None, None] * (1 - cover))
        families.append(family)
    return torch.stack(pictures).to(device), torch.tensor(families)


def make_world():
    return SimpleNamespace(
        FAMILIES=FAMILIES, caption=lambda family: f"a {family}", render_pictures=render_pictures
    )


TINY = [
    "machine.device=cpu",
    "machine.precision=32-true",
    "machine.picture_size=64",
    "models.vae.block_out_channels=[16,16,16,16]",
    "models.unet.block_out_channels=[16,16,32,32]",
    "models.unet.attention_head_dim=[1,1,2,2]",
    *(
        f"{stage}.{setting}"
        for stage in ("vae", "unet", "captions")
        for setting in (
            "pictures.count=8",
            "pictures.chunk=4",
            "optimisation.batch_size=4",
            "optimisation.max_steps=4",
            "optimisation.decay_start=1",
            "optimisation.warmup_steps=1",
            "score_pictures=4",
        )
    ),
    "vae.statistics_pictures=8",
    "vae.grid_pictures=2",
    *(
        f"{stage}.{setting}"
        for stage in ("unet", "captions")
        for setting in (
            "score_timesteps=[900]",
            "grid_columns=1",
            "grid_steps=2",
            "grid_guidance=[1.0]",
        )
    ),
    "logistics.log_every_steps=1",
]


def run(output, *overrides):
    """Composes the shipped config at toy size and runs it, as the command does."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("pretrain", overrides=[*TINY, f"output={output}", *overrides])
    del cfg.world
    # Partial, so that errors come as they are and not as Hydra's own.
    return instantiate(cfg, world=make_world(), _partial_=True)()


def config():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("pretrain")


def same_weights(one, two):
    one, two = (
        torch.load(path, map_location="cpu", weights_only=True)["state_dict"] for path in (one, two)
    )
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which both stages ran to the end."""
    output = tmp_path_factory.mktemp("pretrain")
    run(output, "stage=vae")
    run(output, "stage=unet")
    return output


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """At toy size threads cost more than they give, most of all beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The parts


def test_tokenizer_has_a_byte_alphabet_and_no_merges():
    tokenizer = parts.make_tokenizer()
    assert len(tokenizer) == 514
    ids = tokenizer("A cat").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<|startoftext|>", "a</w>", "c", "a", "t</w>", "<|endoftext|>",
    ]  # fmt: skip
    assert parts.tokenise(["", "a cat, é"]).shape == (2, 77)
    assert parts.tokenise([""])[0].tolist() == [512] + [513] * 76


def test_tokenizer_files_equal_the_layout_of_the_parity_model():
    reference = Path(__file__).parents[2] / "shared/parity/tiny_sd/tokenizer/vocab.json"
    if not reference.exists():
        pytest.skip(f"{reference} is not here")
    assert json.loads(reference.read_text()) == parts.vocabulary()


def test_captions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="longer than 75 bytes"):
        parts.tokenise(["a" * 76])


def test_shipped_config_makes_a_small_stable_diffusion():
    models = instantiate(config().models)
    unet, vae, text_encoder = models.unet(), models.vae(), models.text_encoder()
    attentions = [name for name in unet.attn_processors if "attn1" in name]
    assert len(attentions) == 16
    assert vae.config.scaling_factor == 0.18215
    megabytes = sum(2e-6 * p.numel() for m in (unet, vae, text_encoder) for p in m.parameters())
    assert 25 < megabytes < 39
    assert models.scheduler().config.steps_offset == 1


def tiny_vae():
    torch.manual_seed(0)
    blocks = ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
    return AutoencoderKL(
        down_block_types=blocks[0],
        up_block_types=blocks[1],
        block_out_channels=[16] * 4,
        norm_num_groups=8,
        scaling_factor=0.18215,
    ).eval()


def test_standardising_changes_latents_and_no_reconstruction():
    vae = tiny_vae()
    x = render_pictures("train", 0, range(6), 64)[0]
    vae.quant_conv.bias.data[:4] = torch.tensor([1.0, -2.0, 0.5, 3.0])
    latents = evaluate.encode_posteriors(vae, x, chunk=4)
    mean, std = evaluate.latent_statistics(latents)
    before = evaluate.reconstruct(vae, x, chunk=4)
    parts.standardise(vae, mean=mean, std=std)
    after = evaluate.reconstruct(vae, x, chunk=4)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    new_latents = evaluate.encode_posteriors(vae, x, chunk=4)
    a = (std * 0.18215)[None, :, None, None]
    torch.testing.assert_close(new_latents.std, latents.std / a, rtol=1e-4, atol=0)
    mean, std = evaluate.latent_statistics(new_latents)
    torch.testing.assert_close(std * 0.18215, torch.ones(4), rtol=1e-4, atol=0)
    torch.testing.assert_close(mean * 0.18215, torch.zeros(4), rtol=0, atol=1e-4)


def test_moments_and_decode_equal_diffusers():
    vae, x = tiny_vae(), render_pictures("train", 0, range(2), 64)[0]
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
        mean, logvar = parts.encode_moments(vae, x)
        assert torch.equal(mean, posterior.mean)
        assert torch.equal(logvar, posterior.logvar)
        assert torch.equal(parts.decode(vae, mean), vae.decode(mean).sample)


def test_average_is_the_exponential_one():
    settings = instantiate(config().vae)
    module = VaeTraining(vae=tiny_vae(), settings=settings, seed=0)
    first = copy.deepcopy(list(module.ema.parameters()))
    for weight in module.model.parameters():
        weight.data += 1.0
    module.average(0)  # d = 0.1
    module.average(10**6)  # d = 0.999
    for kept, old, new in zip(
        module.ema.parameters(), first, module.model.parameters(), strict=True
    ):
        expected = 0.999 * (0.1 * old + 0.9 * new) + 0.001 * new
        torch.testing.assert_close(kept, expected, atol=1e-6, rtol=1e-5)
        assert not kept.requires_grad


@pytest.mark.parametrize("stage", ["vae", "unet"])
def test_learning_rate_warms_up_stays_and_decays(stage):
    settings = instantiate(config().vae)
    o = instantiate(config()[stage].optimisation)
    module = VaeTraining(vae=tiny_vae(), settings=settings, seed=0)
    module.optimisation = o
    assert module.learning_rate(0) == pytest.approx(o.lr / o.warmup_steps, rel=1e-3)
    assert module.learning_rate(max(o.warmup_steps, o.decay_start)) == pytest.approx(o.lr, rel=0.01)
    middle = (o.decay_start + o.max_steps) // 2
    assert module.learning_rate(middle) == pytest.approx(o.lr / 2, rel=1e-3)
    assert module.learning_rate(o.max_steps) == pytest.approx(0.0, abs=1e-12)
    module.stretch = 2.0
    assert module.learning_rate(o.max_steps // 2) == pytest.approx(0.0, abs=1e-12)


def test_compiling_in_place_leaves_names_and_copies_alone():
    module = VaeTraining(vae=tiny_vae(), settings=instantiate(config().vae), seed=0)
    names = list(module.state_dict())
    module.compile_model("default")
    assert list(module.state_dict()) == names
    assert not any("_orig_mod" in name for name in names)
    assert copy.deepcopy(module.model).encoder._compiled_call_impl is None


def test_impossible_schedules_are_refused():
    o = instantiate(config().vae.optimisation)
    with pytest.raises(ValueError, match="decay_start"):
        dataclasses.replace(o, decay_start=o.max_steps)
    with pytest.raises(ValueError, match="decay_shape"):
        dataclasses.replace(o, decay_shape="square")


def test_weights_that_overflow_float16_are_refused():
    vae = tiny_vae()
    vae.quant_conv.weight.data[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"quant_conv\.weight does not fit"):
        export.halved(vae)


def test_slow_renderer_costs_pictures_not_time():
    def slow(*args):
        time.sleep(0.05)
        return render_pictures(*args)

    world = make_world()
    world.render_pictures = slow
    cfg = config()
    pictures = instantiate(cfg.vae.pictures, count=400, chunk=4, max_render_minutes=0.1 / 60)
    machine = instantiate(cfg.machine, device="cpu", picture_size=8)
    assert 4 <= len(data.render_training_pictures(world, pictures, machine)) <= 12


# The stages


def test_export_is_a_plain_stable_diffusion(trained):
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "mini")
    assert pipeline.text_encoder.dtype == pipeline.unet.dtype == pipeline.vae.dtype
    assert pipeline.vae.config.scaling_factor == 0.18215
    assert pipeline.safety_checker is None
    x = 2 * render_pictures("test", 0, range(2), 64)[0] - 1
    with torch.no_grad():
        z = pipeline.vae.encode(x).latent_dist.mean
        assert z.shape == (2, 4, 8, 8)
        assert pipeline.vae.decode(z).sample.shape == x.shape
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a disc", num_inference_steps=2, height=64, width=64, output_type="pt").images
    assert images.shape == (1, 3, 64, 64)
    assert torch.isfinite(images).all()


def test_exported_weights_are_the_average_in_float16(trained):
    average = export.part_of(export.averaged_weights(trained / "unet/last.ckpt"), "unet")
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "mini", torch_dtype=torch.float32)
    shipped = pipeline.unet.state_dict()
    assert average.keys() == shipped.keys()
    assert all(torch.equal(average[key].half().float(), shipped[key]) for key in shipped)


def test_exported_text_encoder_reads_back_and_has_the_published_names(trained):
    average = export.part_of(export.averaged_weights(trained / "unet/last.ckpt"), "text_encoder")
    written = load_file(trained / "mini/text_encoder/model.safetensors")
    assert all(key.startswith("text_model.") for key in written)
    assert all(weight.dtype == torch.float32 for weight in written.values())
    folder = trained / "mini/text_encoder"
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    state = CLIPTextModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(average[key], state[key]) for key in average)


def test_gradients_are_clipped_once_per_step(tmp_path, monkeypatch):
    norms = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda *args: norms.append((args[1], clip(*args)))
    )
    run(tmp_path, "stage=vae", "vae.optimisation.max_steps=2", "vae.optimisation.clip_norm=0.25")
    assert [limit for limit, _ in norms] == [0.25, 0.25]
    assert all(norm > 0 for _, norm in norms)


def test_reports_and_pictures_are_written(trained):
    report = json.loads((trained / "report.json").read_text())
    vae = report["vae"]
    assert vae["steps"] == report["unet"]["steps"] == 4
    assert abs(vae["test_psnr_mean"] - vae["test_psnr_mean_before_float16"]) < 0.1
    assert vae["test_psnr_min"] <= vae["test_psnr_mean"]
    assert {"test_mse_captioned", "test_mse_empty"} < set(report["unet"])
    for name in ("vae/reconstructions.png", "unet/samples_guidance_1.png", "vae/loss.csv"):
        assert (trained / name).stat().st_size > 0
    assert [row["step"] for row in callbacks.read_table(trained / "vae/loss.csv")] == list("1234")


def test_standardised_latents_have_unit_spread(trained):
    vae = AutoencoderKL.from_pretrained(trained / "vae/model", torch_dtype=torch.float32)
    x = render_pictures("train", 0, range(8), 64)[0]
    _, std = evaluate.latent_statistics(evaluate.encode_posteriors(vae, x, chunk=4))
    torch.testing.assert_close(std * 0.18215, torch.ones(4), atol=0.02, rtol=0)


@pytest.mark.parametrize("stage", ["vae", "unet"])
def test_resumed_run_equals_an_uninterrupted_one(trained, tmp_path, stage):
    if stage == "unet":
        run_copy(trained / "vae/model", tmp_path / "vae/model")
    shorter = [f"stage={stage}", "vae.grid_pictures=1"]
    # Stopped by its limit in mid-run, as on a machine that is lent by the minute.
    run(tmp_path, *shorter, "max_minutes=0")
    step = torch.load(tmp_path / stage / "last.ckpt", weights_only=True)["global_step"]
    assert step == 1
    run(tmp_path, *shorter, "resume=true")
    assert same_weights(tmp_path / stage / "last.ckpt", trained / stage / "last.ckpt")
    losses = [
        [row["loss"] for row in callbacks.read_table(folder / stage / "loss.csv")]
        for folder in (tmp_path, trained)
    ]
    assert losses[0] == losses[1]


def run_copy(source, target):
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


def test_finished_run_can_be_lengthened(trained, tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/last.ckpt").write_bytes((trained / "vae/last.ckpt").read_bytes())
    run(tmp_path, "stage=vae", "resume=true", "vae.optimisation.max_steps=6")
    assert torch.load(tmp_path / "vae/last.ckpt", weights_only=True)["global_step"] == 6


def test_unet_refuses_another_autoencoder(trained, tmp_path):
    run_copy(trained / "unet", tmp_path / "unet")
    run(tmp_path, "stage=vae", "seed=1", "vae.optimisation.max_steps=2")
    with pytest.raises(ValueError, match="another autoencoder"):
        run(tmp_path, "stage=unet", "resume=true", "unet.optimisation.max_steps=6")


def test_warm_start_begins_with_the_exported_weights(trained, tmp_path):
    run(tmp_path, "stage=unet", f"init_from={trained / 'mini'}", "max_minutes=0",
        "unet.optimisation.lr=0.0")  # fmt: skip
    assert (tmp_path / "mini/unet/diffusion_pytorch_model.safetensors").read_bytes() == (
        trained / "mini/unet/diffusion_pytorch_model.safetensors"
    ).read_bytes()
    assert export.weights_key(tmp_path / "vae/model") == export.weights_key(trained / "vae/model")


def test_captions_are_taught_and_the_empty_prompt_stays(trained, tmp_path):
    run(tmp_path, "stage=captions", f"init_from={trained / 'mini'}", "captions.optimisation.lr=0.1")
    before, after = (
        StableDiffusionPipeline.from_pretrained(folder / "mini") for folder in (trained, tmp_path)
    )
    tokens = parts.tokenise(["", "a disc"])
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    predicted = []
    with torch.no_grad():
        for pipeline in (before, after):
            states = pipeline.text_encoder(tokens)[0]
            predicted.append([pipeline.unet(z, 900, c[None])[0] for c in states])
    changes = [(new - old).abs().max() for old, new in zip(*predicted, strict=True)]
    assert changes[0] < 0.02 * changes[1]
    torch.testing.assert_close(predicted[0][0], predicted[1][0], atol=3e-3, rtol=0)
    frozen = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight"
    states = before.unet.state_dict(), after.unet.state_dict()
    assert torch.equal(states[0][frozen], states[1][frozen])
    scores = json.loads((tmp_path / "report.json").read_text())["captions"]["test_mse_by_timestep"]
    assert all(len(scores[name]) == 1 for name in ("right", "wrong", "empty"))
    with pytest.raises(ValueError, match="give init_from"):
        run(tmp_path / "other", "stage=captions")


def test_schedule_can_be_fitted_to_a_time(tmp_path):
    run(tmp_path, "stage=vae", "max_minutes=0.06", "fit_schedule_to_minutes=true",
        "vae.optimisation.max_steps=100000")  # fmt: skip
    rates = [float(row["lr"]) for row in callbacks.read_table(tmp_path / "vae/loss.csv")]
    assert len(rates) > 3
    assert rates[-1] < 0.2 * max(rates)


def test_runs_are_neither_overwritten_nor_invented(trained, tmp_path):
    with pytest.raises(ValueError, match="there already"):
        run(trained, "stage=vae")
    with pytest.raises(ValueError, match="to resume"):
        run(tmp_path, "stage=vae", "resume=true")
    with pytest.raises(ValueError, match="train that stage first"):
        run(tmp_path, "stage=export")
    with pytest.raises(ValueError, match="stage is"):
        run(tmp_path, "stage=everything")
    with pytest.raises(ValueError, match="needs max_minutes"):
        run(tmp_path, "stage=vae", "fit_schedule_to_minutes=true")


def test_loss_falls_when_it_overfits(tmp_path):
    few = ["pictures.count=4", "optimisation.max_steps=60", "optimisation.lr=3e-3"]
    run(tmp_path, "stage=vae", *(f"vae.{setting}" for setting in few))
    losses = [float(row["loss"]) for row in callbacks.read_table(tmp_path / "vae/loss.csv")]
    assert sum(losses[-10:]) / 10 < 0.75 * sum(losses[:3]) / 3


def test_shipped_sizes_give_small_shards_that_load(tmp_path):
    cfg = config()
    models = instantiate(cfg.models)
    vae_folder, checkpoint = tmp_path / "vae", tmp_path / "last.ckpt"
    export.save_vae(models.vae(), vae_folder, max_shard_size=cfg.logistics.max_shard_size)
    weights = {f"ema.unet.{key}": t for key, t in models.unet().state_dict().items()}
    texts = {f"ema.text_encoder.{k}": t for k, t in models.text_encoder().state_dict().items()}
    data.save_atomically({"state_dict": weights | texts}, checkpoint)
    sizes = export.export_pipeline(
        vae_folder=vae_folder,
        checkpoint=checkpoint,
        models=models,
        folder=tmp_path / "mini",
        max_shard_size=cfg.logistics.max_shard_size,
    )
    assert sizes["largest_file_mb"] <= 14
    assert sizes["total_mb"] <= 40
    assert len(list((tmp_path / "mini/unet").glob("*.safetensors"))) > 1
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "mini", torch_dtype=torch.float32)
    key = "mid_block.attentions.0.proj_in.weight"
    assert torch.equal(pipeline.unet.state_dict()[key], weights[f"ema.unet.{key}"].half().float())
