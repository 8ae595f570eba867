"""Where points go when some of them are dragged: fields of places, as functions of places alone.

Places are (x, y) in pixels, whose centres are whole numbers; a field is calculated on a coarse
lattice and made finer.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

Points = Float[Tensor, "n 2"]
_RIDGE = 1e-6  # of the spline, so that points in one place do not make it singular


def spacing(size: tuple[int, int], count: int) -> int:
    """Pixels between places of which `count` lie along a picture's shorter side.

    >>> spacing((256, 512), 128), spacing((61, 70), 128)
    (2, 1)
    """
    return max(1, round(min(size) / count))


def lattice(size: tuple[int, int], spacing: int) -> Float[Tensor, "rows columns 2"]:
    """The centres of blocks of `spacing` pixels that cover a picture of (height, width)."""
    y, x = (torch.arange(spacing / 2, side + spacing / 2, spacing) - 0.5 for side in size)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).double()


def upsampled(
    field: Float[Tensor, "rows columns 2"], spacing: int, size: tuple[int, int]
) -> Float[Tensor, "h w 2"]:
    """A field on `lattice` at every pixel, bilinear."""
    if spacing == 1:
        return field
    rows = field.permute(2, 0, 1)[None]
    fine = functional.interpolate(rows, scale_factor=spacing, mode="bilinear")
    return fine[0, :, : size[0], : size[1]].permute(1, 2, 0)


def within(
    mask: Bool[Tensor, "h w"], coarse: int, field: Callable[[Tensor], Tensor]
) -> Float[Tensor, "h w 2"]:
    """A field at every pixel of a mask, from its values at the places of a lattice.

    Args:
        mask: where it is asked for; elsewhere it means nothing.
        coarse: pixels between the places.
        field: of places (k, 2).
    """
    size = (mask.shape[0], mask.shape[1])
    touched = functional.max_pool2d(mask[None].float(), coarse, ceil_mode=True)
    needed = functional.max_pool2d(touched, 3, stride=1, padding=1)[0] > 0  # bilinear: the next too
    places = lattice(size, coarse)
    values = torch.zeros_like(places)
    values[needed] = field(places[needed])
    return upsampled(values, coarse, size)


def spline(centres: Points, values: Points, at: Float[Tensor, "k 2"]) -> Float[Tensor, "k 2"]:
    """The thin-plate spline through values at centres: the smoothest there is, in bending energy.

    Source: Bookstein, Principal Warps (1989). Kernel r^2 log r^2, and an affine part.
    """

    def kernel(one: Tensor, other: Tensor) -> Tensor:
        squared = torch.cdist(one, other).square()
        return torch.where(squared > 0, squared * squared.log(), 0.0)

    def affine(p: Tensor) -> Tensor:
        return torch.cat((torch.ones_like(p[:, :1]), p), dim=1)

    scale = centres.abs().max().clamp(min=1)
    p, at, n = centres / scale, at / scale, len(centres)
    system = torch.zeros(n + 3, n + 3, dtype=p.dtype)
    system[:n, :n] = kernel(p, p) + _RIDGE * torch.eye(n, dtype=p.dtype)
    system[:n, n:], system[n:, :n] = affine(p), affine(p).T
    weights = torch.linalg.solve(system, functional.pad(values, (0, 0, 0, 3)))
    return kernel(at, p) @ weights[:n] + affine(at) @ weights[n:]


def rigid(at: Float[Tensor, "k 2"], p: Points, q: Points) -> Float[Tensor, "k 2"]:
    """Where points go when p go to q, by the turn and shift that suit the nearest pairs best.

    Rigid moving least squares (Schaefer et al., 2006, section 2.3), weights 1 / distance^2.
    """
    x, p, q = (torch.view_as_complex(points.contiguous()) for points in (at, p, q))
    weights = 1 / (x[:, None] - p).abs().square().clamp(min=1e-4)
    weights = weights / weights.sum(dim=1, keepdim=True)
    p_mean, q_mean = (weights * p).sum(dim=1), (weights * q).sum(dim=1)
    turn = (weights * (q - q_mean[:, None]) * (p - p_mean[:, None]).conj()).sum(dim=1)
    size = turn.abs()
    turn = torch.where(size > 1e-9, turn / size.clamp(min=1e-9), 1.0)
    return torch.view_as_real(q_mean + turn * (x - p_mean))


def similarity(p: Points, q: Points, least: float) -> tuple[Tensor, Tensor]:
    """a and b of the turn, growth and shift a x + b that suits all pairs p -> q best, as complex.

    Least squares; a size |a| beyond `least` or 1 / `least` is held there. Of one pair the shift.
    """
    p, q = (torch.view_as_complex(points.contiguous()) for points in (p, q))
    p_mean, q_mean = p.mean(), q.mean()
    spread = (p - p_mean).abs().square().sum()
    a = ((q - q_mean) * (p - p_mean).conj()).sum() / spread.clamp(min=1e-9)
    a = a if spread > 1e-9 else torch.ones_like(a)
    size = a.abs()
    turn = a / size if size > 1e-9 else torch.ones_like(a)
    a = turn * size.clamp(least, 1 / least)
    return a, q_mean - a * p_mean


def distance_to(points: Points, at: Float[Tensor, "k 2"]) -> Float[Tensor, " k"]:
    """From places to the nearest of all segments between two of the points."""
    p, x = (torch.view_as_complex(places.contiguous()) for places in (points, at))
    nearest = torch.full((len(at),), torch.inf, dtype=at.dtype)
    for i, j in combinations_with_replacement(range(len(points)), 2):  # one at a time: in cache
        along = p[j] - p[i]
        away = x - p[i]
        part = (away * along.conj()).real / along.abs().square().clamp(min=1e-9)
        nearest = torch.minimum(nearest, (away - part.clamp(0, 1) * along).abs())
    return nearest
