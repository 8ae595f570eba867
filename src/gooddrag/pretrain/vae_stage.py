"""The autoencoder: trained, standardised, saved in float16 and scored."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from gooddrag.pretrain.data import render_training_pictures
from gooddrag.pretrain.evaluate import (
    encode_posteriors,
    latent_statistics,
    psnr,
    reconstruct,
    save_grid,
)
from gooddrag.pretrain.export import averaged_weights, save_vae
from gooddrag.pretrain.parts import standardise
from gooddrag.pretrain.run import Run, check_checkpoint, fit, held_out_pictures, training_report
from gooddrag.pretrain.settings import VaeSettings
from gooddrag.pretrain.vae_training import VaeTraining


def train_vae(run: Run, settings: VaeSettings) -> Path:
    """Trains the autoencoder and finishes it."""
    check_checkpoint(run, "vae")
    module = VaeTraining(vae=run.models.vae(), settings=settings, seed=run.seed)
    module.pictures = render_training_pictures(run.world, settings.pictures, run.machine)
    fit(run, "vae", module)
    module.pictures = torch.empty(0, dtype=torch.uint8)  # frees the device's memory
    return finish_vae(run, settings)


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
