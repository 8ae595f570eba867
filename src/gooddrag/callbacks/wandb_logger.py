"""An edit, or a benchmark, in Weights & Biases."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from lightning import Callback, Trainer
from torch import Tensor

from gooddrag.callbacks.output import sample_folders
from gooddrag.callbacks.scalars import edit_summary, interrupted, operation_scalars
from gooddrag.data.files import read_json
from gooddrag.data.images import to_uint8
from gooddrag.drawing import before_after, overlay
from gooddrag.events import EditCallback
from gooddrag.types import DragOperation, DragSample, Edit

MODES = ("online", "offline", "disabled")
# Of the table of a benchmark; the metrics follow.
PICTURES = ("source", "truth", "result")
COLUMNS = ("name", "category", "task", "status", "error", "seconds_total", "gradient_steps")


class _WandbRuns:
    """How runs are opened and closed.

    wandb is used without Lightning's WandbLogger, which is silent on every rank but the first.

    Args:
        project: the W&B project.
        folder: the output folder; W&B's own files go into its subfolder wandb.
        mode: "online", "offline" or "disabled"; None leaves it to WANDB_MODE, else online.
        group: the W&B group, for the runs of a sweep.
        job_type: the W&B job type.
        name: the run's name.
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
        job_type: str | None = None,
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

    def _start(self, **defaults: Any) -> wandb.Run:
        """Open a run; the defaults hold where an option is None."""
        self.folder.mkdir(parents=True, exist_ok=True)
        options = {k: defaults.get(k) if v is None else v for k, v in self.options.items()}
        # console="off": W&B would otherwise catch the progress bar's output line by line
        options |= {"config": self.config, "settings": wandb.Settings(console="off")}
        options |= {"name": self.name or defaults["name"][:100]}
        try:
            self.run = wandb.init(dir=self.folder, reinit="finish_previous", **options)
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"W&B cannot start ({reason}): run `wandb login`, or set WANDB_MODE=offline"
            ) from None
        return self.run

    def _log(self, content: dict[str, Any]) -> None:
        if self.run is not None:
            self.run.log(content)

    def _finish(self, exit_code: int, summary: dict[str, Any] | None = None) -> None:
        if self.run is not None:
            self.run.summary.update(summary or {})
            self.run.finish(exit_code=exit_code)
        self.run = None

    def _fail(self, error: BaseException) -> None:
        """Close the run as failed."""
        status = "interrupted" if interrupted(error) else "failed"
        self._finish(255 if status == "interrupted" else 1, {"status": status})


class WandbEdit(_WandbRuns, EditCallback):
    """Sends curves, pictures, the film and a summary of each edit to a W&B run of its own.

    Curves are adapt/loss over adapt/step, and drag/loss, drag/drag_loss and drag/distance over
    drag/operation; with several samples in a batch the sample's name stands before "drag".
    The film is found in the output folder, so `DragVideo` must come before. By default the run has
    the sample's name and the job type "edit".

    Args:
        options: see `_WandbRuns`.

    Raises:
        ValueError: an unknown mode.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
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
        run = self._start(name=", ".join(sample.name for sample in samples), job_type="edit")
        run.define_metric("adapt/loss", step_metric="adapt/step")
        for prefix, sample in zip(self._prefixes, samples, strict=True):
            for curve in ("loss", "drag_loss", "distance"):
                run.define_metric(f"{prefix}/{curve}", step_metric=f"{prefix}/operation")
            drawn = overlay(sample.image, sample.handles, sample.targets, sample.mask)
            images = {"source": _image(sample.image), "points": _image(drawn)}
            self._log(self._named(prefix, images))

    def on_edit_retry(self, samples: Sequence[DragSample]) -> None:
        """Close the first try's run as failed, and begin another."""
        self.on_edit_start(samples)

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
        self._fail(error)

    def _named(self, prefix: str, content: dict[str, Any]) -> dict[str, Any]:
        """Put the sample's name before the keys if there are several samples."""
        start = prefix.removesuffix("drag")
        return {f"{start}{key}": value for key, value in content.items()}


class WandbBench(_WandbRuns, Callback):
    """Sends a benchmark's rows while it runs, with pictures, and in the end means and the report.

    One W&B run for each run of the benchmark, opened by the first process. By default its group is
    the output folder's name, so that the jobs of a sweep stand together, its job type the method,
    and its name the method's label with the seed. `samples` is a table that grows. The summary has
    n_ok, n_total and, of each metric that every sample has, the mean as mean/<metric>: a sweep that
    looks for the best must not prefer what fails on hard samples. The run's table and the report
    are an artifact. Works on `gooddrag.bench.runner.Benchmark`.

    Args:
        options: see `_WandbRuns`.

    Raises:
        ValueError: an unknown mode.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._records: dict[str, dict[str, Any]] = {}
        self._table: wandb.Table | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Open the run, with the rows that are there already.

        Raises:
            ValueError: W&B cannot start, for instance without an API key.
        """
        if not trainer.is_global_zero:
            return
        told, self._records, self._table = pl_module.run, {}, None
        self._start(
            name=f"{told.label} seed {told.seed}",
            group=self.folder.resolve().name,
            job_type=told.method,
        )
        self._add(pl_module.known)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the new rows."""
        self._add(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Send the last rows, the means, the table and the report, and close the run."""
        if self.run is None:
            return
        self._add(pl_module.last_news)
        done = [record for record in self._records.values() if record["status"] == "done"]
        counts = {"n_ok": len(done), "n_total": len(pl_module.run.names), "status": "done"}
        report = self.folder / "report"
        for sheet in sorted(report.glob("sheet_*.jpg")):
            self._log({f"report/{sheet.stem}": wandb.Image(str(sheet))})
        artifact = wandb.Artifact(f"bench-{pl_module.run.folder.name}", type="results")
        for path in (pl_module.run.folder / "run.json", pl_module.run.folder / "table.jsonl"):
            artifact.add_file(str(path))
        if report.is_dir():
            artifact.add_dir(str(report), name="report")
        self.run.log_artifact(artifact)
        whole = len(done) == counts["n_total"]
        self._finish(0, counts | (_means(done) if whole else {}))

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Close the run as failed, or as interrupted."""
        self._fail(exception)

    def _add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Read the rows' records, and send them once the metrics' names are known."""
        if self.run is None or not rows:
            return
        new = {}
        for row in rows:
            path = Path(row["folder"]) / row["name"] / "record.json"
            record = read_json(path) if path.exists() else None
            if isinstance(record, dict):  # else another process is making it anew
                new[row["name"]] = record | {"folder": row["folder"]}
        self._records |= new
        if self._table is None:
            metrics = next((list(r["metrics"]) for r in new.values() if r.get("metrics")), None)
            if metrics is None:
                return
            columns = [*PICTURES, *COLUMNS, *metrics]
            self._table = wandb.Table(columns=columns, log_mode="INCREMENTAL")
            new = self._records
        for record in new.values():
            values = {**record, **(record.get("metrics") or {}), **_pictures(record)}
            self._table.add_data(*(values.get(column) for column in self._table.columns))
        self._log({"samples": self._table})


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


def _pictures(record: Mapping[str, Any]) -> dict[str, wandb.Image]:
    """Source with its points, truth and result of a sample, as far as they are there."""
    run = Path(record["folder"])
    shown = run.parent / "samples" / str(record.get("sample_sha256", ""))[:16]
    paths = (shown / "points.png", shown / "truth.png", run / record["name"] / "edited.png")
    found = zip(PICTURES, paths, strict=True)
    return {name: wandb.Image(str(path)) for name, path in found if path.is_file()}


def _means(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each number that all of them have."""
    rows = [{**record, **record["metrics"]} for record in records]
    names = dict.fromkeys(name for record in records for name in record["metrics"])
    values = {
        name: [row[name] for row in rows if isinstance(row.get(name), (int, float))]
        for name in [*names, "seconds_total", "gradient_steps"]
    }
    whole = {name: found for name, found in values.items() if len(found) == len(rows) > 0}
    return {f"mean/{name}": math.fsum(v) / len(v) for name, v in whole.items()}
