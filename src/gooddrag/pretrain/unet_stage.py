"""UNet and text encoder: trained on the autoencoder's latents, exported with it and scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from gooddrag.pretrain.caption_training import CaptionTraining
from gooddrag.pretrain.data import cached_latents, say
from gooddrag.pretrain.evaluate import (
    caption_errors,
    encode_posteriors,
    noise_error,
    sample_rows,
    save_grid,
)
from gooddrag.pretrain.export import export_pipeline, weights_key
from gooddrag.pretrain.parts import tokenise
from gooddrag.pretrain.run import (
    Run,
    check_checkpoint,
    count_weights,
    fit,
    held_out_pictures,
    training_report,
)
from gooddrag.pretrain.settings import CaptionSettings, NoiseSettings, Report, VaeSettings, World
from gooddrag.pretrain.unet_training import NoiseTraining, UnetTraining
from gooddrag.pretrain.vae_stage import finished_vae


def train_unet(run: Run, stage: str, vae_settings: VaeSettings, settings: NoiseSettings) -> Path:
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


def unet_module(run: Run, settings: NoiseSettings, vae: AutoencoderKL) -> NoiseTraining:
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


def export(run: Run, stage: str, settings: NoiseSettings) -> Path:
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
    run: Run,
    stage: str,
    settings: NoiseSettings,
    pipeline: StableDiffusionPipeline,
    guidance: float,
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
    run: Run, settings: NoiseSettings, pipeline: StableDiffusionPipeline
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
