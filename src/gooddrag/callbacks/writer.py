"""The files that an edit leaves: pictures, what happened, and how it was made."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning import LightningModule, Trainer
from torch import Tensor

from gooddrag.callbacks.output import prepare, remove_old, sample_folders
from gooddrag.callbacks.scalars import edit_summary, interrupted, mean_distance
from gooddrag.data.digest import sample_digest
from gooddrag.data.files import write_json
from gooddrag.data.images import to_uint8, write_png
from gooddrag.drawing import before_after
from gooddrag.events import EditCallback
from gooddrag.types import DragOperation, DragSample, Edit, Tracking, Trajectory

PACKAGES = ("gooddrag", "torch", "lightning", "diffusers", "transformers", "peft")


class EditWriter(EditCallback):
    """Writes edited.png, before_after.png, trajectory.json and, last, record.json.

    record.json says "running" from the beginning, and in the end "done", "failed" or
    "interrupted"; an edit that did not finish leaves its trajectory so far, and on Ctrl-C
    partial.png, what the latent showed last. Every file is written atomically.

    Args:
        folder: the output folder; several samples go below it by name.
        existing: if it holds a result: "refuse", "overwrite" or "resume" (see `prepare`).
        config: the resolved configuration, for the record.
        rounding: of edited.png: "truncate" as the official code does, or "nearest".
        seed: for the record.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        existing: str = "refuse",
        config: Mapping[str, Any] | None = None,
        rounding: str = "truncate",
        seed: int | None = None,
    ) -> None:
        self.folder, self.existing, self.rounding = Path(folder), existing, rounding
        self.config, self.seed = dict(config or {}), seed
        self._open: list[_Open] = []
        self._seconds: dict[str, float] = {}

    def on_edit_start(self, samples: Sequence[DragSample]) -> None:
        """Look at the folders again, and leave a record that says "running"."""
        self._open, self._seconds = [], {}
        folders = sample_folders(self.folder, samples)
        for folder in folders:
            prepare(folder, self.existing)
        for folder, sample in zip(folders, samples, strict=True):
            remove_old(folder)
            opened = _Open(folder, sample, start_record(sample, self.config, self.seed))
            self._open.append(opened)
            opened.save()

    def on_edit_retry(self, samples: Sequence[DragSample]) -> None:
        """Forget the attempt that failed, and note why the next one is slower."""
        self._seconds = {}
        for opened in self._open:
            opened.way = Trajectory(start=opened.sample.handles, stop="unfinished")
            opened.preview = None
            opened.record["low_memory"] = True

    def on_phase_end(self, phase: str, seconds: float) -> None:
        """Add the seconds up."""
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def on_drag_operation(self, operation: DragOperation) -> None:
        """Keep what happened, for an edit that does not finish."""
        if self._open:
            opened = self._open[operation.sample]
            opened.preview = operation.preview or opened.preview
            opened.way.operations.append(replace(operation, preview=None))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the trackings as well; the list is the fit's own and grows with it."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        ways: Sequence[Trajectory] = getattr(pl_module, "trajectories", ())
        for opened, way in zip(self._open, ways, strict=False):
            opened.way.start, opened.way.trackings = way.start, way.trackings

    def on_denoise_step(self, sample: int, step: int, preview: Callable[[], Tensor]) -> None:
        """Keep the last preview; it is decoded only if Ctrl-C comes."""
        if self._open:
            self._open[sample].preview = preview

    def on_edit_end(self, samples: Sequence[DragSample], edits: Sequence[Edit]) -> None:
        """Write the results, each record after its files; if that fails, so has the edit."""
        try:
            self._write(edits)
        except BaseException as error:
            self.on_edit_exception(samples, error)
            raise
        self._open = []

    def _write(self, edits: Sequence[Edit]) -> None:
        for opened, edit in zip(self._open, edits, strict=True):
            write_png(opened.folder / "edited.png", to_uint8(edit.image, self.rounding))
            drawn = to_uint8(before_after(opened.sample, edit))
            write_png(opened.folder / "before_after.png", drawn)
            if edit.trajectory is not None:
                opened.save_way(edit.trajectory, edit.handles)
            opened.record |= edit_summary(opened.sample, edit)
            opened.finish("done")

    def on_edit_exception(self, samples: Sequence[DragSample], error: BaseException) -> None:
        """Leave what exists; trouble in doing so must not hide the error itself."""
        stopped = interrupted(error)
        for opened in self._open:
            if opened.record["status"] == "done":
                continue
            opened.record["seconds"] = dict(self._seconds)
            opened.record["error"] = None if stopped else f"{type(error).__name__}: {error}"
            with suppress(OSError):
                opened.leave_unfinished(preview=stopped)
            with suppress(OSError):
                opened.finish("interrupted" if stopped else "failed")
        self._open = []


@dataclass
class _Open:
    """The files of one sample while it is edited."""

    folder: Path
    sample: DragSample
    record: dict[str, Any]
    way: Trajectory = field(init=False)
    preview: Callable[[], Tensor] | None = None

    def __post_init__(self) -> None:
        self.way = Trajectory(start=self.sample.handles, stop="unfinished")

    def save(self) -> None:
        write_json(self.folder / "record.json", self.record)

    def save_way(self, way: Trajectory, end: Float[Tensor, "n 2"]) -> None:
        content = {"targets": self.sample.targets.tolist(), **trajectory_dict(way, end)}
        write_json(self.folder / "trajectory.json", content)

    def leave_unfinished(self, preview: bool) -> None:
        """Write the trajectory so far and, if wanted, the last preview."""
        if self.way.operations:
            handles = self.way.operations[-1].handles
            self.record["distance_after"] = mean_distance(handles, self.sample.targets)
            self.record["operations"] = len(self.way.operations)
            self.save_way(self.way, handles)
        if preview and self.preview is not None:
            with suppress(Exception):  # whatever Ctrl-C broke, the record comes first
                write_png(self.folder / "partial.png", to_uint8(self.preview()))

    def finish(self, status: str) -> None:
        self.record |= {"status": status, "finished": now()}
        self.save()


def trajectory_dict(way: Trajectory, end: Float[Tensor, "n 2"]) -> dict[str, Any]:
    """A trajectory in plain lists and numbers; points are (x, y) in pixels.

    Args:
        way: what happened.
        end: where the handles ended.
    """
    return {
        "start": way.start.tolist(),
        "end": end.tolist(),
        "stop": way.stop,
        "stopped_at": way.stopped_at,
        "operations": [_operation_dict(operation) for operation in way.operations],
        "trackings": [_tracking_dict(tracking) for tracking in way.trackings],
    }


def start_record(sample: DragSample, config: Mapping[str, Any], seed: int | None) -> dict[str, Any]:
    """What is known of an edit before it begins."""
    return {
        "status": "running",
        "started": now(),
        "finished": None,
        "name": sample.name,
        "prompt": sample.prompt,
        "size": {"height": sample.size[0], "width": sample.size[1]},
        "handles": sample.handles.tolist(),
        "targets": sample.targets.tolist(),
        "mask_share": None if sample.mask is None else float(sample.mask.double().mean()),
        "sample_sha256": sample_digest(sample),
        "seed": seed,
        "distance_before": mean_distance(sample.handles, sample.targets),
        "config": dict(config),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "device": _device(),
        "error": None,
    }


def _operation_dict(operation: DragOperation) -> dict[str, Any]:
    return {
        "step": operation.step,
        "timestep": operation.timestep,
        "k": operation.k,
        "losses": list(operation.losses),
        "drag_losses": list(operation.drag_losses),
        "handles": operation.handles.tolist(),
    }


def _tracking_dict(tracking: Tracking) -> dict[str, Any]:
    return {
        "step": tracking.step,
        "timestep": tracking.timestep,
        "gradient_steps": tracking.gradient_steps,
        "handles": tracking.handles.tolist(),
        "grid": tracking.grid.tolist(),
    }


def _version(package: str) -> str | None:
    if package == "torch":
        return str(torch.__version__)  # names the build, as its distribution need not
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def now() -> str:
    """The time as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
