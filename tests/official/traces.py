"""Reading the official codes' traces, and running the same edit through `method=gooddrag`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gooddrag import DragSample, Edit, load_method
from gooddrag.adapt import NoAdapter
from gooddrag.drag import DragOptimization
from gooddrag.events import EditCallback
from gooddrag.methods.latent_drag import LatentDrag
from gooddrag.types import Trajectory

PARITY = Path(__file__).parents[3] / "shared" / "parity"
PEERS = PARITY.with_name("parity_peers")

needs_traces = pytest.mark.skipif(
    not PARITY.is_dir(),
    reason=f"the official code's traces are not at {PARITY}",
)
needs_peers = pytest.mark.skipif(
    not (PARITY.is_dir() and PEERS.is_dir()),
    reason=f"the traces of DragDiffusion's and SDE-Drag's code are not at {PARITY} and {PEERS}",
)


@dataclass(frozen=True)
class Trace:
    """One recorded edit: arrays and settings."""

    name: str
    arrays: dict[str, np.ndarray]
    info: dict[str, Any]

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key])

    def loop(self, i: int, key: str) -> torch.Tensor:
        return self[f"drag{i}_{key}"]

    @property
    def sample(self) -> DragSample:
        points = self["in_points"].float().reshape(-1, 2)
        return DragSample(
            image=self["in_image"].permute(2, 0, 1).float() / 255,
            mask=self["in_mask"][None].float() / 255,
            handles=points[0::2],
            targets=points[1::2],
            prompt=self.info["prompt"] or "",
            name=self.name,
        )

    @property
    def losses_of_loop(self) -> dict[int, int]:
        """Gradient steps of each drag loop."""
        loops, counts = np.unique(self.arrays["ms_i"], return_counts=True)
        return dict(zip(loops.tolist(), counts.tolist(), strict=True))


@cache
def trace(name: str) -> Trace:
    return Trace(name, arrays_of(PARITY, name), json.loads((PARITY / f"{name}.json").read_text()))


@cache
def peer(name: str) -> Trace:
    """A recording of another method's code, made of the sample of "cat_nolora"."""
    sample = {key: trace("cat_nolora").arrays[key] for key in ("in_image", "in_mask", "in_points")}
    info = json.loads((PEERS / f"{name}.json").read_text())
    return Trace(name, sample | arrays_of(PEERS, name), info)


def arrays_of(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)


def overrides_of(settings: dict[str, Any], loops: int | None = None) -> list[str]:
    """The trace's settings as overrides of `method=gooddrag`, with the first drag loops or all."""
    operations = settings["track_per_step"]
    return [
        f"method.B={operations}",
        f"method.K={operations * (loops or settings['drag_end_step'])}",
        f"method.J={settings['max_drag_per_track']}",
        f"method.lr={settings['latent_lr']}",
        f"method.lam={settings['lam']}",
        f"method.r1={settings['r1']}",
        f"method.r2={settings['r2']}",
        f"method.beta={settings['beta']}",
        f"method.patience={settings['max_track_no_change']}",
        f"method.steps={settings['n_inference_step']}",
        f"method.strength={settings['inversion_strength']}",
    ]


@cache
def method(name: str, dtype: str, loops: int | None = None) -> LatentDrag:
    """`method=gooddrag` on the traces' pipeline, with the trace's settings."""
    lora, settings = trace(name).info.get("lora"), trace(name).info["settings"]
    made = load_method("gooddrag", [*pipeline(dtype, lora), *overrides_of(settings, loops)])
    assert isinstance(made, LatentDrag)
    assert bool(lora) != isinstance(made.adapt, NoAdapter)
    return made


def pipeline(dtype: str, lora: object) -> list[str]:
    """The traces' model as overrides, with the LoRA that they used or none."""
    adapt = ["adapt=file", f"adapt.path={PARITY / 'cat_lora_lora'}"] if lora else ["adapt=none"]
    return [
        "backbone=folder",
        f"backbone.path={PARITY / 'tiny_sd'}",
        f"backbone.dtype={dtype}",
        "backbone.device=cpu",
        *adapt,
    ]


class Enough(Exception):
    """Ends an edit of which the rest is not looked at."""


class Recorder(EditCallback):
    """Keeps what happens while one sample is dragged.

    Args:
        to_the_end: false ends the edit when the dragging is over, which saves a part of the time.

    Attributes:
        trajectory: of the sample.
        latents_in, latents_out: z_t entering and leaving each drag loop.
    """

    def __init__(self, to_the_end: bool) -> None:
        self.to_the_end = to_the_end
        self.trajectory: Trajectory
        self.latents_in: dict[int, torch.Tensor] = {}
        self.latents_out: dict[int, torch.Tensor] = {}

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(pl_module, DragOptimization) and batch_idx == 0:
            self.latents_in[pl_module.step] = pl_module.z.detach().clone()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if isinstance(pl_module, DragOptimization):
            (self.trajectory,) = pl_module.trajectories
            self.latents_out[pl_module.step] = pl_module.z.detach().clone()

    def on_phase_start(self, phase: str, total: int) -> None:
        if phase == "denoise" and not self.to_the_end:
            raise Enough


@cache
def edit_of(name: str, dtype: str) -> tuple[Edit, Recorder]:
    """The whole edit through `method=gooddrag`, and what was recorded on the way."""
    recorder = Recorder(to_the_end=True)
    return method(name, dtype)([trace(name).sample], callbacks=[recorder])[0], recorder


@cache
def dragging_of(name: str, dtype: str, loops: int | None) -> Recorder:
    """The edit's dragging alone: its first loops, or all of them."""
    recorder = Recorder(to_the_end=False)
    with pytest.raises(Enough):
        method(name, dtype, loops)([trace(name).sample], callbacks=[recorder])
    return recorder
