"""The stages of `gooddrag pretrain`: vae, unet, captions, export."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from lightning import seed_everything

from gooddrag.pretrain.callbacks import Deadline
from gooddrag.pretrain.export import warm_started
from gooddrag.pretrain.run import Run
from gooddrag.pretrain.settings import (
    CaptionSettings,
    Logistics,
    Machine,
    ModelFactories,
    UnetSettings,
    VaeSettings,
    World,
)
from gooddrag.pretrain.unet_stage import export, train_unet
from gooddrag.pretrain.vae_stage import finished_vae, train_vae


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
