"""From Python: a method, a data set or metrics as conf/ describes them, and an edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gooddrag.composition import composer, groups_among, instantiate, unresolved
from gooddrag.settings import check_numbers

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from gooddrag.data.dragset import DragSet
    from gooddrag.events import EditCallback
    from gooddrag.types import DragSample, Edit


def load_method(name: str = "gooddrag", overrides: Sequence[str] = ()) -> Any:
    """A method as conf/ describes it, with its model loaded.

    Args:
        name: a recipe of conf/method.
        overrides: in Hydra's form, say ["backbone=sd15", "method.B=5", "schedule=drag_first"].

    Returns:
        A callable that takes samples and returns edits (`gooddrag.methods.base.Method`).

    Raises:
        ValueError: settings that cannot work, or a checkpoint that cannot be loaded.
    """
    words = [f"method={name}", *overrides]
    with composer() as compose:
        cfg = compose("edit", words)
        check_numbers(unresolved(cfg), unresolved(compose("edit", groups_among(words))))
    return instantiate(cfg.editor)


def load_data(name: str = "world", overrides: Sequence[str] = ()) -> DragSet:
    """A data set as conf/ describes it; no picture is read before it is asked for.

    Args:
        name: a file of conf/data.
        overrides: in Hydra's form, say ["data.root=DIR", "data.limit=10"].

    Returns:
        A sequence of samples.

    Raises:
        ValueError: settings that cannot work, or a folder that holds no such data set.
    """
    words = [f"data={name}", *overrides]
    with composer() as compose:
        cfg = compose("datasets", words)
        check_numbers(unresolved(cfg), unresolved(compose("datasets", groups_among(words))))
    samples: DragSet = instantiate(cfg.data)
    return samples


def load_metrics(name: str = "default", overrides: Sequence[str] = ()) -> MetricCollection:
    """A set of metrics as conf/ describes it, for `gooddrag.metrics.score`.

    Args:
        name: a file of conf/metrics.
        overrides: in Hydra's form, say ["metrics.dai.gammas=[10]"].

    Raises:
        ValueError: settings that cannot work, or something that is not installed.
    """
    from gooddrag.backbones.shared import sharing
    from gooddrag.metrics import collection

    words = ["data=world", f"metrics={name}", *overrides]
    with composer() as compose:
        cfg = compose("score", words)
        check_numbers(unresolved(cfg), unresolved(compose("score", groups_among(words))))
    with sharing():  # what several metrics look through is loaded once
        return collection(instantiate(cfg.metrics))


def edit(
    sample: DragSample,
    method: Any = None,
    *,
    seed: int = 0,
    callbacks: Sequence[EditCallback] = (),
) -> Edit:
    """Perform one drag edit.

    Args:
        sample: the picture and its points.
        method: from `load_method`; None takes GoodDrag on the built-in model.
        seed: for methods that draw numbers.
        callbacks: hear about progress.

    Raises:
        ValueError: the sample does not fit the method.
    """
    method = method or load_method()
    return method([sample], seed=seed, callbacks=callbacks)[0]
