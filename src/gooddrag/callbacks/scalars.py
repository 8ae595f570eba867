"""The numbers of an edit that the progress bar, the record, W&B and the CSV file all report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from gooddrag.types import DragOperation, DragSample, Edit


def mean_distance(handles: Float[Tensor, "n 2"], targets: Float[Tensor, "n 2"]) -> float:
    """How far the handles are from their targets on average, in pixels; pins count.

    >>> import torch
    >>> p, q = torch.tensor([[0.0, 0.0], [5.0, 5.0]]), torch.tensor([[3.0, 4.0], [5.0, 5.0]])
    >>> mean_distance(p, q)
    2.5
    """
    gap = handles.detach().cpu().double() - targets.detach().cpu().double()
    return float(gap.norm(dim=1).mean())


def operation_scalars(operation: DragOperation, sample: DragSample) -> dict[str, float]:
    """Losses averaged over the operation's gradient steps, and the distance after tracking."""
    found = {
        "loss": _mean(operation.losses),
        "drag_loss": _mean(operation.drag_losses),
        "distance": mean_distance(operation.handles, sample.targets),
    }
    return {key: value for key, value in found.items() if value is not None}


def edit_summary(sample: DragSample, edit: Edit) -> dict[str, Any]:
    """Distances in pixels as tracked, why dragging stopped, seconds per phase, bytes."""
    way = edit.trajectory
    return {
        "distance_before": mean_distance(sample.handles, sample.targets),
        "distance_after": mean_distance(edit.handles, sample.targets),
        "stop": None if way is None else way.stop,
        "stopped_at": None if way is None else way.stopped_at,
        "operations": None if way is None else len(way.operations),
        "seconds": dict(edit.seconds),
        "peak_memory": edit.peak_memory,
    }


def interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C ended the edit; a Lightning fit turns it into SystemExit."""
    seen: BaseException | None = error if isinstance(error, SystemExit) else None
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    return isinstance(error, KeyboardInterrupt) or seen is not None


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
