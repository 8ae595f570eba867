"""One edit's numbers, as a row of a table."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from gooddrag.metrics.base import check_sizes
from gooddrag.types import DragSample
from gooddrag.world import WorldEdit


def collection(metrics: Mapping[str, Metric]) -> MetricCollection:
    """The metrics of a file of conf/metrics as one, which counts every sample that is scored.

    Its `compute` gives the means over samples, over all processes where there are several.
    """
    # Compute groups would merge metrics whose first numbers happen to be equal.
    return MetricCollection(dict(metrics), compute_groups=False)


def score(
    metrics: MetricCollection,
    sample: DragSample,
    edited: Float[Tensor, "3 h w"],
    world: WorldEdit | None = None,
) -> dict[str, float]:
    """Count one edit and return its own numbers by name; NaN where one does not apply.

    Args:
        metrics: a `collection`.
        sample: what was asked for.
        edited: the result, RGB in [0, 1].
        world: the edit as DragWorld knows it, for the metrics against truth.

    Raises:
        ValueError: the picture's size is not the sample's, or a metric needs the truth.
    """
    check_sizes(sample.image, edited)
    given: dict[str, Any] = {
        "source": sample.image.to(edited.device),
        "edited": edited,
        "handles": sample.handles.to(edited.device),
        "targets": sample.targets.to(edited.device),
        "prompt": sample.prompt,
        "name": sample.name,
    }
    if world is not None:
        given["world"] = world
    for name, metric in metrics.items():
        if world is None and "world" in inspect.signature(metric.update).parameters:
            raise ValueError(
                f"the metric {name} needs the true result, which only DragWorld's samples have: "
                "score those, or take another set (metrics=default)"
            )
    return {name: float(number) for name, number in metrics(**given).items()}
