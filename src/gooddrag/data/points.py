"""Point pairs as people and data sets write them. Points are (x, y) in pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

HINT = "write [[handle x, handle y], [target x, target y], ...]"
LARGEST = 1e9
# Of a picture that is not to be dragged (a LoRA needs no points): a sample has some.
STAND_IN = ((0, 0), (1, 1))
Pairs = tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]


def parse_points(points: object) -> Pairs:
    """Split points into handles p and targets q.

    Args:
        points: a flat list of [x, y] (handle, target, handle, target, ...), a mapping with such
            a list under "points" (Drag100), or one with "source" and "target" (DragBench-S).

    Returns:
        Handles and targets, (x, y) in pixels.

    Raises:
        ValueError: the points are not of that form, odd in number, none, or not finite numbers.

    >>> handles, targets = parse_points([[10, 20], [30, 40], [5, 5], [5, 6]])
    >>> handles.tolist(), targets.tolist()
    ([[10.0, 20.0], [5.0, 5.0]], [[30.0, 40.0], [5.0, 6.0]])
    """
    if isinstance(points, Mapping):
        return _from_mapping(points)
    flat = _point_list(points, "points")
    if len(flat) % 2:
        raise ValueError(
            f"found {len(flat)} points, an odd number, so one handle has no target: {HINT}"
        )
    return flat[0::2], flat[1::2]


def format_points(
    handles: Float[Tensor, "n 2"], targets: Float[Tensor, "n 2"]
) -> list[list[float | int]]:
    """The flat list that `parse_points` splits; whole pixels as integers, as other tools expect."""
    pairs = zip(handles.tolist(), targets.tolist(), strict=True)
    return [[int(v) if v == int(v) else v for v in point] for pair in pairs for point in pair]


def _from_mapping(points: Mapping) -> Pairs:
    if "points" in points:
        return parse_points(points["points"])
    if "source" not in points or "target" not in points:
        found = ", ".join(map(repr, points)) or "nothing"
        raise ValueError(f'no points: expected the key "points", found {_short(found)}')
    handles = _point_list(points["source"], "source")
    targets = _point_list(points["target"], "target")
    if len(handles) != len(targets):
        raise ValueError(
            f"every source point needs a target: found {len(handles)} and {len(targets)}"
        )
    return handles, targets


def _point_list(points: object, name: str) -> Float[Tensor, "n 2"]:
    points = points.tolist() if hasattr(points, "tolist") else points
    if not isinstance(points, Sequence) or isinstance(points, (str, bytes)):
        raise ValueError(f"{name} must be a list of points, found {_short(repr(points))}: {HINT}")
    if len(points) == 0:
        raise ValueError(f"{name} holds no points: {HINT}")
    return torch.tensor([_point(point, i + 1) for i, point in enumerate(points)])


def _point(point: object, number: int) -> tuple[float, float]:
    point = point.tolist() if hasattr(point, "tolist") else point
    wrong = f"point {number} is {_short(repr(point))}"
    if not isinstance(point, Sequence) or isinstance(point, (str, bytes)) or len(point) != 2:
        raise ValueError(f"{wrong}, not a pair [x, y]: {HINT}")
    for value in point:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{wrong}: x and y must be numbers")
        if not -LARGEST < value < LARGEST:  # NaN is not in between either
            raise ValueError(f"{wrong}: x and y must be finite numbers of pixels")
    return float(point[0]), float(point[1])


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
