"""What is asked for: the picture, the folder of the results, who listens."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gooddrag.composition import instantiate, job_of_sweep, plain

if TYPE_CHECKING:
    from gooddrag.composition import DictConfig
    from gooddrag.events import EditCallback
    from gooddrag.types import DragSample


def callbacks_of(cfg: DictConfig) -> list[EditCallback]:
    """The callbacks and loggers of the configuration; partial ones are given all of it."""
    from gooddrag.events import EditCallback

    nodes = [*cfg.get("callbacks", {}).values(), *cfg.get("logger", {}).values()]
    made = [instantiate(node) for node in nodes if node is not None]
    # the files come before the loggers, which show them
    return [item if isinstance(item, EditCallback) else item(config=plain(cfg)) for item in made]


def sample_of(cfg: DictConfig, needs_points: bool = True) -> DragSample:
    """The picture that the configuration names, or the demo.

    Raises:
        ValueError: contradicting or incomplete input.
    """
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


def output_of(cfg: DictConfig, name: str) -> Path:
    """The folder of the results: as given (one below it for each job of a sweep), or a new one."""
    given = text_of(cfg, "output")
    job = job_of_sweep()
    if given is not None:
        return Path(given) / job
    base = Path("outputs") / f"{'sweep' if job else name[:80]}_{_started():%Y-%m-%d_%H-%M-%S}"
    return base / job if job else _unused(base)


def text_of(cfg: DictConfig, key: str) -> str | None:
    """A path of the configuration; `~` is the home folder, which shells leave in image=~/cat.jpg.

    Raises:
        ValueError: a list or a mapping.
    """
    value = plain(cfg).get(key)
    if isinstance(value, (list, dict)):
        raise ValueError(f"{key} must be one path, found {value}")
    return None if value is None else os.path.expanduser(str(value))


@cache
def _started() -> datetime:
    """One time for all jobs of a sweep."""
    return datetime.now()


def _unused(folder: Path) -> Path:
    """The folder, or with a number behind its name if it exists."""
    candidates = (folder, *(folder.with_name(f"{folder.name}_{i}") for i in range(2, 1000)))
    return next(path for path in candidates if not path.exists())
