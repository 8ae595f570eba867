"""GroupNorm, with SiLU, of feature maps (b, c, h, w) in channels-last memory.

torch's GroupNorm wants channels first on CUDA, convolutions are fastest channels last: between
them every tensor is turned round twice and read six times. These kernels read it where it lies,
and backward keeps the input alone. A small map takes one kernel each way, with a program for each
group; a large one takes three, in tiles that fill the device. Arithmetic is float32 whatever the
precision of the tensors.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 64, 64  # pixels and channels of a tile
MEMBERS = 128  # the most channels that a group may have
VALUES = 4096  # of tiles that are joined at a time
WHOLE = 16384  # values of a group that one program may hold: more would not fit the registers
PIXELS = (64, 256, 1024)  # what it pads them to, so that maps of many sizes share a kernel
SHARE = 1024  # values of it to a warp
# One kernel serves all of them; of channels it knows whether 16 divide them, so that a thread reads
# and writes 16 bytes at a time.
SIZES = ["pixels", "chunks", "size"]


@triton.jit
def _tile(pixels, channels, R: tl.constexpr, C: tl.constexpr):
    """This program's channels and which of them exist; its values' mask and places."""
    rows = tl.program_id(0) * R + tl.arange(0, R)
    columns = tl.program_id(1) * C + tl.arange(0, C)
    some = columns < channels
    inside = (rows < pixels)[:, None] & some[None, :]
    start = tl.program_id(2) * pixels
    place = (start + rows)[:, None].to(tl.int64) * channels + columns[None, :]
    return columns, some, inside, place


@triton.jit(do_not_specialize=SIZES)
def _statistics(x, mean, m2, pixels, channels, chunks, R: tl.constexpr, C: tl.constexpr):
    """Per tile and channel: mean, and sum of squared differences from it."""
    columns, some, inside, place = _tile(pixels, channels, R, C)
    tile = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum(pixels - tl.program_id(0) * R, R)
    average = tl.sum(tile, 0) / count
    difference = tl.where(inside, tile - average[None, :], 0.0)
    out = (tl.program_id(2) * chunks + tl.program_id(0)) * channels + columns
    tl.store(mean + out, average, mask=some)
    tl.store(m2 + out, tl.sum(difference * difference, 0), mask=some)


@triton.jit(do_not_specialize=SIZES)
def _normalisation(
    mean,
    m2,
    offset,
    weight,
    bias,
    scale,
    shift,
    centre,
    inverse,
    pixels,
    channels,
    chunks,
    size,
    total,
    eps,
    OFFSET: tl.constexpr,
    R: tl.constexpr,
    T: tl.constexpr,
    S: tl.constexpr,
):
    """Per sample and group: joins the tiles (Chan et al.), gives y = scale x + shift."""
    group, sample = tl.program_id(0), tl.program_id(1)
    members = tl.arange(0, S)
    mine = members < size
    columns = group * size + members
    out = sample * channels + columns
    moved = tl.zeros([S], tl.float32)
    if OFFSET:
        moved = tl.load(offset + out, mask=mine, other=0.0).to(tl.float32)
    summed = tl.zeros([S], tl.float32)
    for start in range(0, chunks, T):
        tiles = start + tl.arange(0, T)
        inside = (tiles < chunks)[:, None] & mine[None, :]
        place = (sample * chunks + tiles)[:, None] * channels + columns[None, :]
        count = tl.minimum(pixels - tiles * R, R)[:, None].to(tl.float32)
        own_mean = tl.load(mean + place, mask=inside, other=0.0) + moved[None, :]
        summed += tl.sum(tl.where(inside, own_mean * count, 0.0), 0)
    average = tl.sum(summed, 0) / total
    squares = tl.zeros([S], tl.float32)
    for start in range(0, chunks, T):
        tiles = start + tl.arange(0, T)
        inside = (tiles < chunks)[:, None] & mine[None, :]
        place = (sample * chunks + tiles)[:, None] * channels + columns[None, :]
        count = tl.minimum(pixels - tiles * R, R)[:, None].to(tl.float32)
        apart = tl.load(mean + place, mask=inside, other=0.0) + moved[None, :] - average
        own = tl.load(m2 + place, mask=inside, other=0.0)
        squares += tl.sum(tl.where(inside, own + count * apart * apart, 0.0), 0)
    rstd = 1 / tl.sqrt(tl.sum(squares, 0) / total + eps)
    w = tl.load(weight + columns, mask=mine, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=mine, other=0.0).to(tl.float32)
    tl.store(scale + out, rstd * w, mask=mine)
    tl.store(shift + out, b - (average - moved) * rstd * w, mask=mine)
    same = tl.zeros([S], tl.float32)
    tl.store(centre + out, average - moved, mask=mine)
    tl.store(inverse + out, same + rstd, mask=mine)


@triton.jit(do_not_specialize=SIZES)
def _apply(
    x, y, scale, shift, pixels, channels, SILU: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    """y = scale x + shift, then SiLU."""
    columns, some, inside, place = _tile(pixels, channels, R, C)
    own = tl.program_id(2) * channels + columns
    a = tl.load(scale + own, mask=some, other=0.0)
    b = tl.load(shift + own, mask=some, other=0.0)
    u = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * a[None, :] + b[None, :]
    if SILU:
        u = u * tl.sigmoid(u)
    tl.store(y + place, u.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_of_u(
    x, dy, scale, shift, centre, inverse, own, place, inside, some, SILU: tl.constexpr
):
    """d loss / d u times scale, where y = silu(u), and x_hat, both float32."""
    a = tl.load(scale + own, mask=some, other=0.0)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        b = tl.load(shift + own, mask=some, other=0.0)
        u = value * a[None, :] + b[None, :]
        s = tl.sigmoid(u)
        g = g * s * (1 + u * (1 - s))
    average = tl.load(centre + own, mask=some, other=0.0)
    rstd = tl.load(inverse + own, mask=some, other=0.0)
    hat = (value - average[None, :]) * rstd[None, :]
    return g * a[None, :], hat


@triton.jit(do_not_specialize=SIZES)
def _gradient_sums(
    x,
    dy,
    scale,
    shift,
    centre,
    inverse,
    sum_g,
    sum_gx,
    pixels,
    channels,
    chunks,
    SILU: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """Per tile and channel: the sums of g and of g x_hat."""
    columns, some, inside, place = _tile(pixels, channels, R, C)
    own = tl.program_id(2) * channels + columns
    g, hat = _gradient_of_u(x, dy, scale, shift, centre, inverse, own, place, inside, some, SILU)
    out = (tl.program_id(2) * chunks + tl.program_id(0)) * channels + columns
    tl.store(sum_g + out, tl.sum(g, 0), mask=some)
    tl.store(sum_gx + out, tl.sum(tl.where(inside, g * hat, 0.0), 0), mask=some)


@triton.jit(do_not_specialize=SIZES)
def _gradient_means(
    sum_g,
    sum_gx,
    mean_g,
    mean_gx,
    channels,
    chunks,
    size,
    total,
    T: tl.constexpr,
    S: tl.constexpr,
):
    """Per sample and group: the means of g and of g x_hat, given to each channel."""
    group, sample = tl.program_id(0), tl.program_id(1)
    members = tl.arange(0, S)
    mine = members < size
    columns = group * size + members
    g, gx = tl.zeros([S], tl.float32), tl.zeros([S], tl.float32)
    for start in range(0, chunks, T):
        tiles = start + tl.arange(0, T)
        inside = (tiles < chunks)[:, None] & mine[None, :]
        place = (sample * chunks + tiles)[:, None] * channels + columns[None, :]
        g += tl.sum(tl.load(sum_g + place, mask=inside, other=0.0), 0)
        gx += tl.sum(tl.load(sum_gx + place, mask=inside, other=0.0), 0)
    same, out = tl.zeros([S], tl.float32), sample * channels + columns
    tl.store(mean_g + out, same + tl.sum(g, 0) / total, mask=mine)
    tl.store(mean_gx + out, same + tl.sum(gx, 0) / total, mask=mine)


@triton.jit(do_not_specialize=SIZES)
def _gradient(
    x,
    dy,
    residual,
    dx,
    scale,
    shift,
    centre,
    inverse,
    mean_g,
    mean_gx,
    pixels,
    channels,
    ADD: tl.constexpr,
    SILU: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """dx = g - mean(g) - x_hat mean(g x_hat), where g carries 1 / std already, + residual."""
    columns, some, inside, place = _tile(pixels, channels, R, C)
    own = tl.program_id(2) * channels + columns
    g, hat = _gradient_of_u(x, dy, scale, shift, centre, inverse, own, place, inside, some, SILU)
    m = tl.load(mean_g + own, mask=some, other=0.0)
    mx = tl.load(mean_gx + own, mask=some, other=0.0)
    result = g - m[None, :] - hat * mx[None, :]
    if ADD:
        result += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + place, result.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def _group(pixels, channels, SIZE: tl.constexpr, P: tl.constexpr, S: tl.constexpr):
    """This program's channels, one group's; which of the values exist, and their places."""
    rows, members = tl.arange(0, P), tl.arange(0, S)
    columns = tl.program_id(0) * SIZE + members
    mine = members < SIZE
    inside = (rows < pixels)[:, None] & mine[None, :]
    place = (tl.program_id(1) * pixels + rows)[:, None].to(tl.int64) * channels + columns[None, :]
    return columns, mine, inside, place


@triton.jit(do_not_specialize=SIZES)
def _whole(
    x,
    y,
    offset,
    weight,
    bias,
    scale,
    shift,
    centre,
    inverse,
    pixels,
    channels,
    eps,
    OFFSET: tl.constexpr,
    SILU: tl.constexpr,
    SIZE: tl.constexpr,
    P: tl.constexpr,
    S: tl.constexpr,
):
    """What `_statistics`, `_normalisation` and `_apply` do, for a group that one program holds."""
    columns, mine, inside, place = _group(pixels, channels, SIZE, P, S)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    own = tl.program_id(1) * channels + columns
    moved = tl.zeros([S], tl.float32)
    if OFFSET:
        moved = tl.load(offset + own, mask=mine, other=0.0).to(tl.float32)
    total = (pixels * SIZE).to(tl.float32)
    # column sums first: the offset is the same for all pixels
    average = tl.sum(tl.sum(value, 0) + moved * pixels, 0) / total
    apart = tl.where(inside, value + (moved - average)[None, :], 0.0)
    rstd = 1 / tl.sqrt(tl.sum(tl.sum(apart * apart, 0), 0) / total + eps)
    a = tl.load(weight + columns, mask=mine, other=0.0).to(tl.float32) * rstd
    b = tl.load(bias + columns, mask=mine, other=0.0).to(tl.float32) - (average - moved) * a
    u = value * a[None, :] + b[None, :]
    if SILU:
        u = u * tl.sigmoid(u)
    tl.store(y + place, u.to(y.dtype.element_ty), mask=inside)
    tl.store(scale + own, a, mask=mine)
    tl.store(shift + own, b, mask=mine)
    tl.store(centre + own, average - moved, mask=mine)
    tl.store(inverse + own, tl.zeros([S], tl.float32) + rstd, mask=mine)


@triton.jit(do_not_specialize=SIZES)
def _whole_gradient(
    x,
    dy,
    residual,
    dx,
    scale,
    shift,
    centre,
    inverse,
    pixels,
    channels,
    ADD: tl.constexpr,
    SILU: tl.constexpr,
    SIZE: tl.constexpr,
    P: tl.constexpr,
    S: tl.constexpr,
):
    """What `_gradient_sums`, `_gradient_means` and `_gradient` do, for such a group."""
    columns, mine, inside, place = _group(pixels, channels, SIZE, P, S)
    own = tl.program_id(1) * channels + columns
    g, hat = _gradient_of_u(x, dy, scale, shift, centre, inverse, own, place, inside, mine, SILU)
    total = (pixels * SIZE).to(tl.float32)
    m = tl.sum(tl.sum(g, 0), 0) / total
    mx = tl.sum(tl.sum(tl.where(inside, g * hat, 0.0), 0), 0) / total
    result = g - m - hat * mx
    if ADD:
        result += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + place, result.to(dx.dtype.element_ty), mask=inside)


def whole(pixels: int, size: int) -> tuple[int, int] | None:
    """What pixels and channels of a group are padded to, if one program can hold it."""
    members = triton.next_power_of_2(size)
    padded = next((count for count in PIXELS if count >= pixels), None)
    return None if padded is None or padded * members > WHOLE else (padded, members)


def warps_of(padded: tuple[int, int]) -> int:
    """Of a program that holds so many pixels of so many channels."""
    return max(1, padded[0] * padded[1] // SHARE)


def together(size: int) -> tuple[int, int]:
    """How many tiles are joined at a time, of a group of that many channels, and those padded."""
    members = triton.next_power_of_2(size)
    return VALUES // members, members


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        offset: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        silu: bool,
    ) -> tuple[Tensor, Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        samples, channels, height, width = x.shape
        pixels, size = height * width, channels // groups
        affine = torch.empty((4, samples, channels), device=x.device, dtype=torch.float32)
        y, added = torch.empty_like(x), offset is not None
        moved = weight if offset is None else offset.expand(samples, channels).contiguous()
        if padded := whole(pixels, size):
            given = (pixels, channels, eps, added, silu, size, *padded)
            warps = warps_of(padded)
            _whole[(groups, samples)](x, y, moved, weight, bias, *affine, *given, num_warps=warps)
        else:
            chunks = triton.cdiv(pixels, ROWS)
            tiles = (chunks, triton.cdiv(channels, COLUMNS), samples)
            mean, m2 = affine.new_empty((2, samples, chunks, channels))
            _statistics[tiles](x, mean, m2, pixels, channels, chunks, ROWS, COLUMNS)
            shape = (pixels, channels, chunks, size, float(pixels * size), eps)
            _normalisation[(groups, samples)](
                mean, m2, moved, weight, bias, *affine, *shape, added, ROWS, *together(size)
            )
            _apply[tiles](x, y, affine[0], affine[1], pixels, channels, silu, ROWS, COLUMNS)
        ctx.save_for_backward(x, affine)
        ctx.groups, ctx.silu = groups, silu
        ctx.set_materialize_grads(False)
        return x.view_as(x), y

    @staticmethod
    def backward(ctx: Any, ds: Tensor | None, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return ds, None, None, None, None, None, None
        x, affine = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        added = ds is not None
        residual = dy if ds is None else ds.contiguous(memory_format=torch.channels_last)
        samples, channels, height, width = x.shape
        pixels, size = height * width, channels // ctx.groups
        dx, grid = torch.empty_like(x), (ctx.groups, samples)
        given: tuple[Any, ...]
        if padded := whole(pixels, size):
            given = (pixels, channels, added, ctx.silu, size, *padded)
            _whole_gradient[grid](x, dy, residual, dx, *affine, *given, num_warps=warps_of(padded))
        else:
            chunks = triton.cdiv(pixels, ROWS)
            tiles = (chunks, triton.cdiv(channels, COLUMNS), samples)
            sums = affine.new_empty((2, samples, chunks, channels))
            given = (pixels, channels, chunks, ctx.silu, ROWS, COLUMNS)
            _gradient_sums[tiles](x, dy, *affine, *sums, *given)
            means = affine.new_empty((2, samples, channels))
            shape = (channels, chunks, size, float(pixels * size))
            _gradient_means[grid](*sums, *means, *shape, *together(size))
            given = (pixels, channels, added, ctx.silu, ROWS, COLUMNS)
            _gradient[tiles](x, dy, residual, dx, *affine, *means, *given)
        return dx, None, None, None, None, None, None


def group_norm(
    x: Tensor,
    offset: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """x, and GroupNorm of x + offset with frozen weights, with SiLU behind it if asked for.

    Who reads x beside its norm should read the x given back: its gradient is then added where the
    norm's is made.

    Args:
        x: (b, c, h, w) on CUDA, at most float32, and at most 128 channels a group.
        offset: (1 or b, c), without a gradient.
        weight, bias: (c,).
        groups: how many the channels are divided into.
        eps: added to the variance.
        silu: whether SiLU follows.
    """
    same, y = _GroupNorm.apply(x, offset, weight, bias, groups, eps, silu)
    return same, y
