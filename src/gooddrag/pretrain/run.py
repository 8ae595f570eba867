"""One invocation of `gooddrag pretrain`: what all stages share."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor, nn

from gooddrag.pretrain.averaged import AveragedTraining, Endless
from gooddrag.pretrain.callbacks import Deadline, Progress, SaveLast, read_table
from gooddrag.pretrain.data import render_test_pictures, say
from gooddrag.pretrain.export import update_report
from gooddrag.pretrain.settings import (
    Logistics,
    Machine,
    ModelFactories,
    NoiseSettings,
    Report,
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


def held_out_pictures(run: Run, settings: VaeSettings | NoiseSettings) -> tuple[Tensor, Tensor]:
    """Renders the test pictures that a stage is scored on: [N, 3, H, W] in [0, 1], families."""
    return render_test_pictures(
        run.world,
        count=settings.score_pictures,
        chunk=settings.pictures.chunk,
        seed=settings.pictures.seed,
        machine=run.machine,
    )


def training_report(
    run: Run, stage: str, model: nn.Module, settings: VaeSettings | NoiseSettings
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
