"""What a family of scenes declares: parameters, material points, painting and edits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gooddrag.world.paint import Canvas

Parameters = dict[str, Tensor]
Point = tuple[Tensor, Tensor]

TASKS = ("relocation", "rotation", "rescaling", "removal", "creation")


class Draw:
    """Hands out the columns of a matrix of uniform numbers [B, P] one after the other."""

    def __init__(self, uniform: Tensor) -> None:
        """Starts at the first column."""
        self._columns = uniform.unbind(dim=1)
        self._next = 0

    def unit(self) -> Tensor:
        """The next column: uniform numbers in [0, 1), [B]."""
        self._next += 1
        return self._columns[self._next - 1]

    def between(self, low: float, high: float) -> Tensor:
        """Uniform numbers in [low, high), [B]."""
        return low + (high - low) * self.unit()

    def sign(self) -> Tensor:
        """-1 or 1 with equal probability, [B]."""
        return torch.where(self.unit() < 0.5, -1.0, 1.0)

    def chance(self, probability: float) -> Tensor:
        """1 with the given probability, else 0, [B]."""
        return (self.unit() < probability).float()

    def swing(self, low: float, high: float) -> Tensor:
        """A number of magnitude in [low, high) and random sign, [B]."""
        value = self.unit() * 2 - 1
        return torch.where(value < 0, -1.0, 1.0) * (low + (high - low) * value.abs())


@dataclass(frozen=True)
class Edit:
    """One kind of edit of a family.

    Attributes:
        task: One of TASKS.
        change: From parameters and fresh draws, the parameters to override before and after.
            Overriding them before as well makes sure there is something to remove or create.
        handles: Names of the material points to drag.
        pins: Names of the material points that must stay.
    """

    task: str
    change: Callable[[Parameters, Draw], tuple[Parameters, Parameters]]
    handles: tuple[str, ...]
    pins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A family of scenes.

    Attributes:
        name: Short name, also the end of an edit's name.
        caption: A sentence for a text-to-image model.
        parameters: From draws, named scene parameters [B] (a "light" among them).
        points: From parameters, picture positions (x, y) in [0, 1] of named material points.
        paint: Paints the scene onto a canvas from parameters [B, 1, 1, 1].
        edits: The edits; every task must occur.
    """

    name: str
    caption: str
    parameters: Callable[[Draw], Parameters]
    points: Callable[[Parameters], dict[str, Point]]
    paint: Callable[[Parameters, Canvas], None]
    edits: tuple[Edit, ...]
