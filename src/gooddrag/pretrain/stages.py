"""The stages of `gooddrag pretrain`: vae, unet, captions, export."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from lightning import Trainer, seed_everything
from torch import Tensor, nn

from gooddrag.pretrain.callbacks import Deadline, Progress, SaveLast, read_table
from gooddrag.pretrain.data import (
    cached_latents,
    render_test_pictures,
    render_training_pictures,
    say,
)
from gooddrag.pretrain.evaluate import (
    caption_errors,
    encode_posteriors,
    latent_statistics,
    noise_error,
    psnr,
    reconstruct,
    sample_rows,
    save_grid,
)
from gooddrag.pretrain.export import (
    averaged_weights,
    export_pipeline,
    save_vae,
    update_report,
    warm_started,
    weights_key,
)
from gooddrag.pretrain.modules import (
    AveragedTraining,
    CaptionTraining,
    Endless,
    UnetTraining,
    VaeTraining,
)
from gooddrag.pretrain.parts import standardise, tokenise
from gooddrag.pretrain.settings import (
    CaptionSettings,
    Logistics,
    Machine,
    ModelFactories,
    Report,
    UnetSettings,
    VaeSettings,
    World,
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One invocation: what all stages share."""

    output: Path
    resume: bool
    seed: int
    deadline: Deadline
    world: World
    machine: Machine
    models: ModelFactories
    logistics: Logistics
    init_from: Path | None

    @property
    def vae_folder(self) -> Path:
        """The finished autoencoder, on whose latents the UNet is trained and which is shipped."""
        return self.output / "vae" / "model"

    def checkpoint(self, stage: str) -> Path:
        """The resumable checkpoint of a stage."""
        return self.output / stage / "last.ckpt"

    def report(self, section: str, values: Report) -> None:
        """Writes a section of report.json, with the versions that made it."""
        update_report(self.output / "report.json", section, values | {"versions": versions()})
        told = {key: value for key, value in values.items() if not isinstance(value, dict)}
        say(f"{section}: {told}")


def pretrain(
    *,
    stage: str,
    output: str | Path,
    resume: bool,
    max_minutes: float | None,
    fit_schedule_to_minutes: bool,
    init_from: str | Path | None,
    seed: int,
    world: World,
    machine: Machine,
    models: ModelFactories,
    vae: VaeSettings,
    unet: UnetSettings,
    captions: CaptionSettings,
    logistics: Logistics,
) -> Path:
    """Trains or exports the embedded model.

    Args:
        stage: 'vae', 'unet' or 'captions' (which end with the export), or 'export', which exports
            the last stage that was trained.
        output: Folder of all stages: vae/, unet/, captions/, mini/ (the model) and report.json.
        resume: Go on from the stage's last.ckpt.
        max_minutes: Training stops this long after the call; None for no limit.
        fit_schedule_to_minutes: Stretch or shrink the schedule so that it ends at max_minutes.
        init_from: An exported model to take the first weights from, None for random ones.
        seed: Seed of the first weights and of all draws.
        world: Where the pictures come from.
        machine: Where and how to compute.
        models: Makers of the parts.
        vae: Settings of the first stage.
        unet: Settings of the second stage.
        captions: Settings of the third stage, which starts from an exported model.
        logistics: Printing, logging, saving.

    Returns:
        The folder of the autoencoder (stage 'vae') or of the exported model.

    Raises:
        ValueError: The stage is unknown, or what it needs is missing or would be overwritten.
    """
    start = time.monotonic()
    if fit_schedule_to_minutes and max_minutes is None:
        raise ValueError("fit_schedule_to_minutes=true needs max_minutes: give it a number")
    limit = math.inf if max_minutes is None else 60 * max_minutes
    source = None if init_from is None else Path(init_from)
    run = Run(
        output=Path(output),
        resume=resume,
        seed=seed,
        deadline=Deadline(start + limit, fit_schedule_to_minutes),
        world=world,
        machine=machine,
        models=warm_started(models, source),
        logistics=logistics,
        init_from=source,
    )
    if machine.torch_device().type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    seed_everything(seed, verbose=False)
    if stage == "vae":
        return train_vae(run, vae)
    if stage == "unet":
        return train_unet(run, "unet", vae, unet)
    if stage == "captions":
        if run.init_from is None:
            raise ValueError("stage=captions starts from an exported model: give init_from=DIR")
        return train_unet(run, "captions", vae, captions)
    if stage == "export":
        finished_vae(run, vae)
        if run.checkpoint("captions").exists():
            return export(run, "captions", captions)
        return export(run, "unet", unet)
    raise ValueError(f"stage is {stage!r}: give 'vae', 'unet', 'captions' or 'export'")


def train_vae(run: Run, settings: VaeSettings) -> Path:
    """Trains the autoencoder and finishes it."""
    check_checkpoint(run, "vae")
    module = VaeTraining(vae=run.models.vae(), settings=settings, seed=run.seed)
    module.pictures = render_training_pictures(run.world, settings.pictures, run.machine)
    fit(run, "vae", module)
    module.pictures = torch.empty(0, dtype=torch.uint8)  # frees the device's memory
    return finish_vae(run, settings)


def train_unet(run: Run, stage: str, vae_settings: VaeSettings, settings: UnetSettings) -> Path:
    """Trains UNet and text encoder on the finished autoencoder's latents, then exports."""
    check_checkpoint(run, stage)
    vae = finished_vae(run, vae_settings)
    module = unet_module(run, settings, vae)
    module.latents = cached_latents(
        run.output / stage / "latents.pt",
        vae,
        run.world,
        settings.pictures,
        run.machine,
        weights_key(run.vae_folder),
    )
    fit(run, stage, module)
    module.latents = None
    return export(run, stage, settings)


def unet_module(run: Run, settings: UnetSettings, vae: AutoencoderKL) -> UnetTraining:
    """Makes the module that trains the UNet, or only its captions."""
    kind: Any = CaptionTraining if isinstance(settings, CaptionSettings) else UnetTraining
    return kind(
        unet=run.models.unet(),
        text_encoder=run.models.text_encoder(),
        tokens=tokenise(prompts(run.world)),
        alphas_cumprod=run.models.scheduler().alphas_cumprod,
        scaling_factor=vae.config.scaling_factor,
        vae_key=weights_key(run.vae_folder),
        settings=settings,
        seed=run.seed,
    )


def prompts(world: World) -> list[str]:
    """Lists the captions of all families, and the empty prompt last."""
    return [*(world.caption(family) for family in world.FAMILIES), ""]


def check_checkpoint(run: Run, stage: str) -> None:
    """Refuses to overwrite a run, and to resume one that is not there, before any work."""
    path = run.checkpoint(stage)
    if run.resume and not path.exists():
        raise ValueError(f"there is no {path} to resume: leave out resume=true")
    if path.exists() and not run.resume:
        raise ValueError(f"{path} is there already: give resume=true, or another output folder")


def fit(run: Run, stage: str, module: AveragedTraining) -> None:
    """Runs one stage's training until max_steps or the deadline."""
    folder, machine = run.output / stage, run.machine
    device = machine.torch_device()
    folder.mkdir(parents=True, exist_ok=True)
    count = sum(weight.numel() for weight in module.model.parameters())
    say(f"{stage}: {count / 1e6:.2f} M weights on {device_name(device)}, {machine.precision}")
    if machine.compiles():
        module.compile_model(machine.compile_mode)
    o = module.optimisation
    trainer = Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index] if device.type == "cuda" else 1,
        precision=machine.precision,  # type: ignore[arg-type]
        max_steps=-1 if run.deadline.fit_schedule else o.max_steps,
        max_epochs=-1,
        benchmark=True,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            Progress(
                name=stage,
                table=folder / "loss.csv",
                logistics=run.logistics,
                deadline=run.deadline,
            ),
            SaveLast(path=run.checkpoint(stage), minutes=run.logistics.checkpoint_minutes),
        ],
    )
    trainer.fit(module, Endless(), ckpt_path=run.checkpoint(stage) if run.resume else None)


def finished_vae(run: Run, settings: VaeSettings) -> AutoencoderKL:
    """Loads the finished autoencoder; finishes it from its checkpoint, or copies init_from's."""
    if not run.vae_folder.exists():
        if run.init_from is not None and not run.checkpoint("vae").exists():
            shutil.copytree(run.init_from / "vae", run.vae_folder)
        else:
            finish_vae(run, settings)
    return load_vae(run)


def load_vae(run: Run) -> AutoencoderKL:
    """Loads the finished autoencoder in float32 on the device, frozen."""
    vae = AutoencoderKL.from_pretrained(run.vae_folder, torch_dtype=torch.float32)
    return vae.to(run.machine.torch_device()).eval().requires_grad_(False)


def finish_vae(run: Run, settings: VaeSettings) -> Path:
    """Standardises the averaged autoencoder's latents, saves it in float16, and scores it."""
    vae = run.models.vae()
    vae.load_state_dict(averaged_weights(run.checkpoint("vae")))
    vae = vae.to(run.machine.torch_device()).eval().requires_grad_(False)
    few = dataclasses.replace(
        settings.pictures, count=settings.statistics_pictures, max_render_minutes=None
    )
    x = render_training_pictures(run.world, few, run.machine).float() / 255
    mean, std = latent_statistics(encode_posteriors(vae, x, chunk=run.logistics.score_chunk))
    standardise(vae, mean=mean, std=std)
    save_vae(vae, run.vae_folder, max_shard_size=run.logistics.max_shard_size)
    report_vae(run, settings, full=vae, shipped=load_vae(run))
    return run.vae_folder


def report_vae(
    run: Run, settings: VaeSettings, *, full: AutoencoderKL, shipped: AutoencoderKL
) -> None:
    """Scores the autoencoder before and after float16 on the test split, and draws a grid."""
    chunk, columns = run.logistics.score_chunk, settings.grid_pictures
    x, _ = held_out_pictures(run, settings)
    y = reconstruct(shipped, x, chunk=chunk)
    scores = psnr(x, y)
    latents = encode_posteriors(shipped, x, chunk=chunk)
    scale = shipped.config.scaling_factor
    mean, std = (scale * value for value in latent_statistics(latents))
    scored = {
        "test_psnr_mean": float(scores.mean()),
        "test_psnr_min": float(scores.min()),
        "test_psnr_mean_before_float16": float(psnr(x, reconstruct(full, x, chunk=chunk)).mean()),
        "test_latent_mean": mean.tolist(),
        "test_latent_std": std.tolist(),
        "test_posterior_std": float(scale * latents.std.mean()),
    }
    run.report("vae", training_report(run, "vae", shipped, settings) | scored)
    titles = ["test pictures", "their reconstructions"]
    save_grid(run.output / "vae" / "reconstructions.png", [x[:columns], y[:columns]], titles)


def held_out_pictures(run: Run, settings: VaeSettings | UnetSettings) -> tuple[Tensor, Tensor]:
    """Renders the test pictures that a stage is scored on: [N, 3, H, W] in [0, 1], families."""
    return render_test_pictures(
        run.world,
        count=settings.score_pictures,
        chunk=settings.pictures.chunk,
        seed=settings.pictures.seed,
        machine=run.machine,
    )


def export(run: Run, stage: str, settings: UnetSettings) -> Path:
    """Writes the whole model to mini/, then scores and samples what was written."""
    folder, device = run.output / "mini", run.machine.torch_device()
    sizes = export_pipeline(
        vae_folder=run.vae_folder,
        checkpoint=run.checkpoint(stage),
        models=run.models,
        folder=folder,
        max_shard_size=run.logistics.max_shard_size,
    )
    run.report("export", {"folder": str(folder), **sizes})
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(device)
    scored = exported_noise_error(run, settings, pipeline)
    scored["text_encoder_weights"] = count_weights(pipeline.text_encoder)
    run.report(stage, training_report(run, stage, pipeline.unet, settings) | scored)
    for guidance in settings.grid_guidance:
        save_samples(run, stage, settings, pipeline, guidance)
    return folder


def save_samples(
    run: Run, stage: str, settings: UnetSettings, pipeline: StableDiffusionPipeline, guidance: float
) -> None:
    """Draws a row of samples per caption, and one of the empty prompt."""
    rows = sample_rows(
        pipeline,
        prompts(run.world),
        columns=settings.grid_columns,
        steps=settings.grid_steps,
        guidance=guidance,
        size=run.machine.picture_size,
        seed=run.seed,
    )
    path = run.output / stage / f"samples_guidance_{guidance:g}.png"
    save_grid(path, rows, prompts(run.world))
    say(f"wrote {path}")


def exported_noise_error(
    run: Run, settings: UnetSettings, pipeline: StableDiffusionPipeline
) -> Report:
    """Scores the exported UNet on the test split."""
    chunk = run.logistics.score_chunk
    pictures, families = held_out_pictures(run, settings)
    latents = encode_posteriors(pipeline.vae, pictures, chunk=chunk)
    module = unet_module(run, settings, pipeline.vae)
    module.ema["unet"].load_state_dict(pipeline.unet.state_dict())
    module.ema["text_encoder"].load_state_dict(pipeline.text_encoder.state_dict())
    module.to(run.machine.torch_device()).eval()
    by_level = caption_errors(
        module,
        latents,
        families,
        timesteps=settings.score_timesteps,
        chunk=chunk,
        seed=run.seed,
    )
    error = noise_error(module, latents, families, chunk=chunk, seed=run.seed)
    return {**error, "test_mse_by_timestep": by_level}


def training_report(
    run: Run, stage: str, model: nn.Module, settings: VaeSettings | UnetSettings
) -> Report:
    """Tells what the training of a stage came to."""
    rows = read_table(run.output / stage / "loss.csv")
    last: dict[str, Any] = rows[-1] if rows else {"step": 0, "seconds": 0, "loss": "nan"}
    return {
        "weights": count_weights(model),
        "steps": int(last["step"]),
        "training_seconds": float(last["seconds"]),
        "last_loss": float(last["loss"]),
        "device": device_name(run.machine.torch_device()),
        "machine": dataclasses.asdict(run.machine),
        "settings": dataclasses.asdict(settings),
        "seed": run.seed,
    }


def count_weights(model: nn.Module) -> int:
    """Counts the weights of a part."""
    return sum(weight.numel() for weight in model.parameters())


def device_name(device: torch.device) -> str:
    """Names the chip that computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.machine() + " " + device.type


def versions() -> dict[str, str]:
    """Lists the versions of what a result depends on."""
    names = ("torch", "lightning", "diffusers", "transformers")
    return {name: importlib.metadata.version(name) for name in names}
