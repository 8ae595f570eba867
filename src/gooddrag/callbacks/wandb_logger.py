"""The edit in Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from torch import Tensor

from gooddrag.callbacks.output import sample_folders
from gooddrag.callbacks.scalars import edit_summary, interrupted, operation_scalars
from gooddrag.data.images import to_uint8
from gooddrag.drawing import before_after, overlay
from gooddrag.events import EditCallback
from gooddrag.types import DragOperation, DragSample, Edit

MODES = ("online", "offline", "disabled")


class WandbEdit(EditCallback):
    """Sends curves, pictures, the film and a summary of each edit to a W&B run of its own.

    Curves are adapt/loss over adapt/step, and drag/loss, drag/drag_loss and drag/distance over
    drag/operation; with several samples in a batch the sample's name stands before "drag".
    The film is found in the output folder, so `DragVideo` must come before. wandb is used
    without Lightning's WandbLogger, which is silent on every rank but the first.

    Args:
        project: the W&B project.
        folder: the output folder; W&B's own files go into its subfolder wandb.
        mode: "online", "offline" or "disabled"; None leaves it to WANDB_MODE, else online.
        group: the W&B group, for the runs of a sweep.
        job_type: the W&B job type.
        name: the run's name; by default the sample's.
        tags: the run's tags.
        entity: the W&B user or team.
        config: the resolved configuration.

    Raises:
        ValueError: an unknown mode.
    """

    def __init__(
        self,
        project: str = "gooddrag",
        folder: str | os.PathLike[str] = ".",
        mode: str | None = None,
        group: str | None = None,
        job_type: str | None = "edit",
        name: str | None = None,
        tags: Sequence[str] = (),
        entity: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if mode not in (None, *MODES):
            raise ValueError(f"the mode of W&B must be {', '.join(MODES)}; found {mode!r}")
        if mode is None and os.environ.get("WANDB_MODE") == "disabled":
            mode = "disabled"  # said in so many words, W&B makes no folder
        self.folder, self.config, self.name = Path(folder), dict(config or {}), name
        self.options: dict[str, Any] = {"project": project, "entity": entity, "group": group}
        self.options |= {"job_type": job_type, "mode": mode, "tags": list(tags) or None}
        self.run: wandb.Run | None = None
        self._samples: tuple[DragSample, ...] = ()
        self._prefixes: tuple[str, ...] = ()
        self._adapt_steps = 0

    def on_edit_start(self, samples: Sequence[DragSample]) -> None:
        """Open the run, name the axes and show the sources.

        Raises:
            ValueError: W&B cannot start, for instance without an API key.
        """
        self._finish(1)  # a run left open by an edit that never reported its end
        self._samples, self._adapt_steps = tuple(samples), 0
        one = len(samples) == 1
        self._prefixes = tuple("drag" if one else f"{sample.name}/drag" for sample in samples)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run = self._init(self.name or ", ".join(sample.name for sample in samples)[:100])
        self.run.define_metric("adapt/loss", step_metric="adapt/step")
        for prefix, sample in zip(self._prefixes, samples, strict=True):
            for curve in ("loss", "drag_loss", "distance"):
                self.run.define_metric(f"{prefix}/{curve}", step_metric=f"{prefix}/operation")
            drawn = overlay(sample.image, sample.handles, sample.targets, sample.mask)
            images = {"source": _image(sample.image), "points": _image(drawn)}
            self._log(self._named(prefix, images))

    def on_phase_advance(self, phase: str, loss: Tensor | None = None) -> None:
        """A point on the LoRA's curve."""
        if phase == "adapt" and loss is not None:
            self._adapt_steps += 1
            self._log({"adapt/step": self._adapt_steps, "adapt/loss": float(loss)})

    def on_drag_operation(self, operation: DragOperation) -> None:
        """A point on the curves of dragging."""
        prefix = self._prefixes[operation.sample]
        scalars = operation_scalars(operation, self._samples[operation.sample])
        curves = {f"{prefix}/{key}": value for key, value in scalars.items()}
        self._log({f"{prefix}/operation": operation.k, **curves})

    def on_edit_end(self, samples: Sequence[DragSample], edits: Sequence[Edit]) -> None:
        """Send the pictures, the film and the summary, and close the run."""
        folders = sample_folders(self.folder, samples)
        for prefix, sample, edit, folder in zip(
            self._prefixes, samples, edits, folders, strict=True
        ):
            media = {
                "result": _image(edit.image),
                "before_after": _image(before_after(sample, edit)),
            }
            self._log(self._named(prefix, media | _film(folder)))
            if self.run is not None:
                self.run.summary.update(self._named(prefix, _flat(edit_summary(sample, edit))))
        self._finish(0, {"status": "done"})

    def on_edit_exception(self, samples: Sequence[DragSample], error: BaseException) -> None:
        """Close the run as failed."""
        status = "interrupted" if interrupted(error) else "failed"
        self._finish(255 if status == "interrupted" else 1, {"status": status})

    def _init(self, name: str) -> wandb.Run:
        # console="off": W&B would otherwise catch the progress bar's output line by line
        settings = wandb.Settings(console="off")
        options = self.options | {"name": name, "config": self.config, "settings": settings}
        try:
            return wandb.init(dir=self.folder, reinit="finish_previous", **options)
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"W&B cannot start ({reason}): run `wandb login`, or set WANDB_MODE=offline"
            ) from None

    def _named(self, prefix: str, content: dict[str, Any]) -> dict[str, Any]:
        """Put the sample's name before the keys if there are several samples."""
        start = prefix.removesuffix("drag")
        return {f"{start}{key}": value for key, value in content.items()}

    def _log(self, content: dict[str, Any]) -> None:
        if self.run is not None:
            self.run.log(content)

    def _finish(self, exit_code: int, summary: dict[str, Any] | None = None) -> None:
        if self.run is not None:
            self.run.summary.update(summary or {})
            self.run.finish(exit_code=exit_code)
        self.run = None


def _image(image: Tensor) -> wandb.Image:
    return wandb.Image(to_uint8(image).numpy(), file_type="png")


def _film(folder: Path) -> dict[str, wandb.Video]:
    for suffix in ("mp4", "gif"):
        path = folder / f"drag.{suffix}"
        if path.exists():
            return {"video": wandb.Video(str(path), format=suffix)}
    return {}


def _flat(summary: dict[str, Any]) -> dict[str, Any]:
    """Seconds per phase as keys of their own, without what is unknown."""
    seconds = {f"seconds/{phase}": value for phase, value in summary.pop("seconds").items()}
    return {key: value for key, value in summary.items() if value is not None} | seconds
