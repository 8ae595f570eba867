"""What is asked for: the picture, the folder of the results, who listens."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gooddrag.composition import instantiate, plain, plain_with, unresolved
from gooddrag.jobs import options_of_job, present_job

if TYPE_CHECKING:
    import torch
    from lightning import Callback, Trainer
    from torchmetrics import MetricCollection

    from gooddrag.bench.reading import Experiment
    from gooddrag.bench.runner import Benchmark
    from gooddrag.composition import DictConfig
    from gooddrag.events import EditCallback
    from gooddrag.types import DragSample


# Overrides that say what else a benchmark does than how its method edits.
NOT_THE_METHOD = (
    *("method", "data", "metrics", "trainer", "tables", "logger", "seed", "batch", "label", "code"),
    *("output", "existing", "retry_failed", "report", "cache", "results", "backbone.device"),
    *("experiment", "variant", "workers"),
)
GROUPS_APART = ("data.", "metrics.", "trainer.", "tables.", "logger.", "hydra.")
# Settings of a data set that say which samples of it, not what they are.
NOT_THE_DATA = ("root", "select", "limit", "start", "count")


def callbacks_of(cfg: DictConfig) -> list[EditCallback]:
    """The callbacks and loggers of the configuration; partial ones are given all of it."""
    from gooddrag.events import EditCallback

    nodes = [*cfg.get("callbacks", {}).values(), *cfg.get("logger", {}).values()]
    made = [instantiate(node) for node in nodes if node is not None]
    # the files come before the loggers, which show them
    return [item if isinstance(item, EditCallback) else item(config=plain(cfg)) for item in made]


def sample_of(cfg: DictConfig, needs_points: bool = True) -> DragSample:
    """The picture that the configuration names, or the demo; says so if its mask frees nothing.

    Raises:
        ValueError: contradicting or incomplete input.
    """
    sample = _sample_of(cfg, needs_points)
    if sample.mask is not None and not sample.mask.any():
        print("the mask has no white pixel, and counts as none (white may change)", file=sys.stderr)
    elif sample.mask is not None and needs_points:
        _tell_of_frozen_handles(sample, sample.mask)
    return sample


def _tell_of_frozen_handles(sample: DragSample, mask: torch.Tensor) -> None:
    """Say which handles are to move where nothing may change: a mask may be inverted."""
    height, width = sample.size
    for i, (handle, target) in enumerate(zip(sample.handles, sample.targets, strict=True)):
        x, y = (min(int(v), last - 1) for v, last in zip(handle, (width, height), strict=True))
        if not mask[..., y, x].any() and not handle.equal(target):
            print(
                f"handle {i + 1} at ({x}, {y}) is to move, but the mask is black there "
                "(white may change)",
                file=sys.stderr,
            )


def _sample_of(cfg: DictConfig, needs_points: bool) -> DragSample:
    from gooddrag.data.folder import make_sample, read_sample
    from gooddrag.data.points import STAND_IN
    from gooddrag.data.world import world_sample

    folder, image, mask = (text_of(cfg, key) for key in ("sample", "image", "mask"))
    points = plain(cfg).get("points")
    if folder is not None and not image is mask is points is None:
        raise ValueError("give either sample=DIR or image=FILE with points (and mask), not both")
    if folder is not None:
        sample = read_sample(folder, needs_points)
        return sample if cfg.prompt is None else replace(sample, prompt=str(cfg.prompt))
    if image is None:
        if points is not None or mask is not None:
            raise ValueError("points and mask need a picture: give image=FILE as well")
        return world_sample(cfg.demo.split, cfg.demo.seed, cfg.demo.index)
    if points is None and needs_points:
        raise ValueError("which points? Give 'points=[[handle x,y],[target x,y],...]' in pixels")
    points = STAND_IN if points is None else points
    return make_sample(image, points, mask, prompt="" if cfg.prompt is None else str(cfg.prompt))


def benchmark_of(cfg: DictConfig, root: str, output: Path) -> tuple[Trainer, Benchmark]:
    """The benchmark that the configuration describes, and the Trainer that runs it.

    Args:
        cfg: the configuration.
        root: of conf/, that it is composed from.
        output: the folder that all runs go below.

    Raises:
        ValueError: settings that cannot work, or no such data.
    """
    from gooddrag.bench.progress import BenchmarkBar
    from gooddrag.bench.reading import BASELINES
    from gooddrag.bench.records import Run, code_version
    from gooddrag.bench.report import Reporter
    from gooddrag.bench.runner import Benchmark
    from gooddrag.bench.tables import Settings
    from gooddrag.bench.tasks import Rules
    from gooddrag.callbacks.output import prepare

    def on(device: torch.device) -> DictConfig:
        """The configuration of a process that has this device."""
        if cfg.backbone.device == "auto":
            cfg.backbone.device = str(device)
        return cfg

    if cfg.label in BASELINES and cfg.label != cfg.method.name:
        raise ValueError(
            f"label={cfg.label} is the name of a row that tables begin with, and method is "
            f"{cfg.method.name}: take another label"
        )
    rules = Rules(
        **{key: cfg[key] for key in ("batch", "workers", "existing", "retry_failed", "rounding")}
    )
    samples = instantiate(cfg.data)
    settings = plain_with(cfg, seed=0)
    experiment = experiment_of(cfg)
    run = Run(
        output=output,
        data=" ".join([present_job().choices["data"], *_changed_data(cfg, root)]),
        method=cfg.method.name,
        label=cfg.label or cfg.method.name,
        changes=[] if cfg.label else _changed_method(),
        config=settings["editor"] | {"rounding": rules.rounding},
        seed=cfg.seed,
        code=cfg.code or code_version(),
        names=samples.names,
        experiments={experiment.name: cfg.variant} if experiment else {},
    )
    cfg.output = str(output)
    benchmark = Benchmark(
        samples,
        run,
        make_method=lambda device: instantiate(on(device).editor),
        make_metrics=MetricsMaker(json.dumps(settings["metrics"])),
        metrics_config=settings["metrics"],
        rules=rules,
    )
    for name in (
        "lightning.pytorch",
        "lightning.fabric",
    ):  # devices found, processes, advertisements
        logging.getLogger(name).setLevel(logging.ERROR)
    tables = Settings(**settings["tables"])
    reporters = [Reporter(output, tables, experiment)] if cfg.report else []
    # the report comes before the loggers, which send it
    heard = [BenchmarkBar(), *reporters, *_loggers_of(cfg)]
    trainer = _trainer_of(cfg, heard)
    prepare(output, "resume")
    return trainer, benchmark


@contextmanager
def restartable(output: Path, code: str) -> Iterator[None]:
    """What is started again for further devices does the same, and leaves no trace here.

    Lightning starts `sys.argv` again, with the variables that it sets for its processes.

    Args:
        output: the folder of the runs.
        code: the version of the code, whose sources may be worked on meanwhile.
    """
    words, variables = list(sys.argv), dict(os.environ)
    sys.argv += [f"output='{output.resolve()}'", f"code='{code}'"]
    try:
        yield
    finally:
        sys.argv = words
        _leave_group()
        os.environ.clear()
        os.environ.update(variables)


def paths_of(cfg: DictConfig, key: str, missing: str) -> list[Path]:
    """One path of the configuration, or a list of them.

    Raises:
        ValueError: none is given (the message is `missing`), or an empty one, see `text_of`.
    """
    value = unresolved(cfg)[key]
    values = value if isinstance(value, list) else [value]
    if not values or "???" in values:
        raise ValueError(missing)
    if "" in values:
        raise ValueError(f"{key}= is empty: give a path")
    return [Path(str(path)).expanduser() for path in values]


def output_of(cfg: DictConfig, name: str) -> Path:
    """The folder of the results: as given (one below it for each job of a sweep), or a new one."""
    given = text_of(cfg, "output")
    job = present_job().number
    if given is not None:
        return Path(given) / job
    base = Path("outputs") / f"{'sweep' if job else name[:80]}_{_started():%Y-%m-%d_%H-%M-%S}"
    return base / job if job else _unused(base)


def text_of(cfg: DictConfig, key: str) -> str | None:
    """A path of the configuration; `~` is the home folder, which shells leave in image=~/cat.jpg.

    Raises:
        ValueError: a list or a mapping, or nothing: to a shell, output=$FORGOTTEN is output=
    """
    value = plain(cfg).get(key)
    if isinstance(value, (list, dict)):
        raise ValueError(f"{key} must be one path, found {value}")
    if value == "":
        raise ValueError(f"{key}= is empty: give a path, or leave it out")
    return None if value is None else os.path.expanduser(str(value))


def _trainer_of(cfg: DictConfig, callbacks: list[Callback]) -> Trainer:
    """Lightning's Trainer.

    Raises:
        ValueError: devices that this machine has not got.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        trainer: Trainer = instantiate(cfg.trainer, callbacks=callbacks)
    except Exception as error:
        if not isinstance(error.__cause__, MisconfigurationException):
            raise
        raise ValueError(
            f"this trainer cannot work here ({error.__cause__}): take trainer=cpu, or other "
            "trainer.devices"
        ) from None
    return trainer


def _loggers_of(cfg: DictConfig) -> list[Callback]:
    """The loggers of a benchmark.

    Raises:
        ValueError: one that hears of single edits only.
    """
    from gooddrag.events import EditCallback

    made = [instantiate(node) for node in cfg.logger.values()]
    if any(isinstance(logger, EditCallback) for logger in made):
        raise ValueError("this logger is for gooddrag edit: a benchmark takes logger=none or wandb")
    return [logger(config=plain(cfg)) for logger in made]


def _changed_method() -> list[str]:
    """The overrides of the job that make its method another one."""
    words = [(word.lstrip("+~").partition("=")[0], word) for word in present_job().overrides]
    return [
        word
        for key, word in words
        if key not in NOT_THE_METHOD and not key.startswith(GROUPS_APART)
    ]


@dataclass(frozen=True)
class MetricsMaker:
    """Makes the metrics of a configuration, also in another process."""

    config: str

    def __call__(self, device: torch.device) -> MetricCollection:
        """The metrics; those with a model choose its device by themselves."""
        from gooddrag.backbones.shared import sharing
        from gooddrag.metrics.score import collection

        with sharing():
            return collection(instantiate(json.loads(self.config)))


def experiment_of(cfg: DictConfig) -> Experiment | None:
    """The experiment that the job is a variant of."""
    from gooddrag.bench.reading import Experiment

    if not cfg.get("variants"):
        return None
    return Experiment(present_job().choices["experiment"], list(plain(cfg)["variants"]))


def _changed_data(cfg: DictConfig, root: str) -> list[str]:
    """What makes the data set another one than its file of conf/data says: split=validation."""
    usual = plain(options_of_job(root, without=["experiment"]).data)
    return [
        f"{key}={value}"
        for key, value in plain(cfg.data).items()
        if key not in NOT_THE_DATA and value != usual.get(key)
    ]


def _leave_group() -> None:
    """The next job of a sweep forms a group of processes of its own."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@cache
def _started() -> datetime:
    """One time for all jobs of a sweep."""
    return datetime.now()


def _unused(folder: Path) -> Path:
    """The folder, or with a number behind its name if it exists."""
    candidates = (folder, *(folder.with_name(f"{folder.name}_{i}") for i in range(2, 1000)))
    return next(path for path in candidates if not path.exists())
