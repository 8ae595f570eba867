"""Signed distance functions in pure torch.

Every function takes coordinates ``x, y`` (any broadcastable shape, in picture widths, y pointing
down) and returns the distance to the shape's edge in picture widths: negative inside, positive
outside. Sizes may be floats or tensors that broadcast against the coordinates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Number = Tensor | float
_TINY = 1e-6


def _tensor(value: Number, like: Tensor) -> Tensor:
    """Returns `value` as a tensor of the type and device of `like`."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


def length(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean length; never exactly zero so that divisions stay finite."""
    return torch.sqrt(x * x + y * y + _TINY * _TINY)


class Frame(NamedTuple):
    """A local coordinate frame: origin (x, y) in picture widths, clockwise angle in radians."""

    x: Number
    y: Number
    angle: Number = 0.0

    def local(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Maps picture coordinates to coordinates of this frame."""
        return rotate(x - self.x, y - self.y, -_tensor(self.angle, x))

    def picture(self, x: Number, y: Number) -> tuple[Tensor, Tensor]:
        """Maps coordinates of this frame to picture coordinates."""
        like = next(value for value in (self.x, self.y, self.angle) if isinstance(value, Tensor))
        turned_x, turned_y = rotate(_tensor(x, like), _tensor(y, like), _tensor(self.angle, like))
        return turned_x + self.x, turned_y + self.y


def rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Rotates (x, y) about the origin by `angle` radians, clockwise on the screen."""
    cosine, sine = torch.cos(angle), torch.sin(angle)
    return cosine * x - sine * y, sine * x + cosine * y


def circle(x: Tensor, y: Tensor, radius: Number) -> Tensor:
    """Disc about the origin."""
    return length(x, y) - radius


def ellipse(x: Tensor, y: Tensor, radius_x: Number, radius_y: Number) -> Tensor:
    """Axis-aligned ellipse about the origin (first-order distance, exact on the edge)."""
    radius_x = _tensor(radius_x, x).clamp(min=1e-4)
    radius_y = _tensor(radius_y, x).clamp(min=1e-4)
    scaled_x, scaled_y = x / radius_x, y / radius_y
    level = length(scaled_x, scaled_y)
    return level * (level - 1) / length(scaled_x / radius_x, scaled_y / radius_y)


def box(x: Tensor, y: Tensor, half_width: Number, half_height: Number, corner: Number) -> Tensor:
    """Rectangle about the origin with rounded corners of radius `corner`."""
    over_x = x.abs() - (half_width - corner)
    over_y = y.abs() - (half_height - corner)
    outside = length(over_x.clamp(min=0), over_y.clamp(min=0))
    return outside + torch.maximum(over_x, over_y).clamp(max=0) - corner


def capsule(
    x: Tensor,
    y: Tensor,
    start: tuple[Number, Number],
    end: tuple[Number, Number],
    radius: Number,
    end_radius: Number | None = None,
) -> Tensor:
    """Thick segment from `start` to `end`; with `end_radius` it tapers linearly."""
    along_x = _tensor(end[0] - start[0], x)
    along_y = _tensor(end[1] - start[1], x)
    from_x, from_y = x - start[0], y - start[1]
    square = along_x * along_x + along_y * along_y + _TINY * _TINY
    position = ((from_x * along_x + from_y * along_y) / square).clamp(0, 1)
    distance = length(from_x - position * along_x, from_y - position * along_y)
    if end_radius is None:
        return distance - radius
    return distance - (radius + (end_radius - radius) * position)


def triangle(
    x: Tensor,
    y: Tensor,
    a: tuple[Number, Number],
    b: tuple[Number, Number],
    c: tuple[Number, Number],
    corner: Number = 0.0,
) -> Tensor:
    """Triangle of any orientation, grown and rounded by `corner`."""
    sides, distances = [], []
    for start, end in ((a, b), (b, c), (c, a)):
        along_x, along_y = _tensor(end[0] - start[0], x), _tensor(end[1] - start[1], x)
        from_x, from_y = x - start[0], y - start[1]
        square = along_x * along_x + along_y * along_y + _TINY * _TINY
        position = ((from_x * along_x + from_y * along_y) / square).clamp(0, 1)
        distances.append(length(from_x - position * along_x, from_y - position * along_y))
        sides.append(from_x * along_y - from_y * along_x)
    nearest = torch.minimum(torch.minimum(distances[0], distances[1]), distances[2])
    low = torch.minimum(torch.minimum(sides[0], sides[1]), sides[2])
    high = torch.maximum(torch.maximum(sides[0], sides[1]), sides[2])
    # A triangle shrunk to a point has an inside nowhere, yet all its sides are zero.
    area = _tensor((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]), x).abs()
    inside = ((low >= 0) | (high <= 0)) & (area > 1e-7)
    return torch.where(inside, -nearest, nearest) - corner


def smile(x: Tensor, y: Tensor, half_width: Number, bend: Number, radius: Number) -> Tensor:
    """Stroke along ``y = bend (1 - (x / half_width)^2)``: a smile when bend > 0 (y points down).

    `radius` is half the stroke's thickness; the ends are round.
    """
    half_width = _tensor(half_width, x).clamp(min=1e-4)
    nearest = torch.minimum(torch.maximum(x, -half_width), half_width)
    part = nearest / half_width
    slope = -2 * bend * part / half_width
    height = y - bend * (1 - part * part)
    return length(x - nearest, height / torch.sqrt(1 + slope * slope)) - radius


def petals(x: Tensor, y: Tensor, radius: Number, count: int, roundness: Number) -> Tensor:
    """A blossom: `count` round petals around the origin; `radius` is the mean outer radius."""
    angle = torch.atan2(y, x)
    wave = torch.sqrt(0.5 + 0.5 * torch.cos(angle * count) + 1e-3)
    return (length(x, y) - radius * (1 + roundness * (wave - 0.64))) * 0.8


def union(*distances: Tensor) -> Tensor:
    """Sharp union of shapes."""
    result = distances[0]
    for distance in distances[1:]:
        result = torch.minimum(result, distance)
    return result


def smooth_union(first: Tensor, second: Tensor, blend: Number) -> Tensor:
    """Union whose seam is rounded over about `blend` picture widths."""
    share = (0.5 + 0.5 * (second - first) / blend).clamp(0, 1)
    return second + (first - second) * share - blend * share * (1 - share)


def intersection(first: Tensor, second: Tensor) -> Tensor:
    """Points inside both shapes."""
    return torch.maximum(first, second)
