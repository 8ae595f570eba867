"""Tokens (..., d) in one pass over memory: GEGLU, and LayerNorm of a sum.

torch takes two kernels forward and five backward for a GEGLU, and an addition of its own before
each LayerNorm and behind each of its gradients. Arithmetic is float32 whatever the precision of
the tensors; the input alone is kept for the backward. A kernel is made for widths that 16 divide,
where a thread reads and writes 16 bytes at a time, and another for all others.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # elements of what has no rows


@triton.jit
def _halves(x, total, width, N: tl.constexpr):
    """This program's elements of y, which exist; where their a lies; a and gate, float32."""
    own = tl.program_id(0) * N + tl.arange(0, N)
    some = own < total
    left = own.to(tl.int64) + (own // width).to(tl.int64) * width
    a = tl.load(x + left, mask=some, other=0.0).to(tl.float32)
    gate = tl.load(x + left + width, mask=some, other=0.0).to(tl.float32)
    return own, some, left, a, gate


@triton.jit
def _geglu(x, y, total, width, N: tl.constexpr):
    """y = a gelu(gate), where a row of x is a and gate one after the other."""
    own, some, _, a, gate = _halves(x, total, width, N)
    below = 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
    tl.store(y + own, (a * gate * below).to(y.dtype.element_ty), mask=some)


@triton.jit
def _geglu_gradient(x, dy, dx, total, width, N: tl.constexpr):
    """gelu'(u) = Phi(u) + u phi(u)."""
    own, some, left, a, gate = _halves(x, total, width, N)
    d = tl.load(dy + own, mask=some, other=0.0).to(tl.float32)
    below = 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
    density = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    tl.store(dx + left, (d * gate * below).to(dx.dtype.element_ty), mask=some)
    slope = d * a * (below + gate * density)
    tl.store(dx + left + width, slope.to(dx.dtype.element_ty), mask=some)


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        ctx.save_for_backward(x)
        ctx.shape = (y.numel(), y.shape[-1], BLOCK)
        _geglu[(triton.cdiv(y.numel(), BLOCK),)](x, y, *ctx.shape)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        _geglu_gradient[(triton.cdiv(dy.numel(), BLOCK),)](x, dy.contiguous(), dx, *ctx.shape)
        return dx


def geglu(x: Tensor) -> Tensor:
    """a gelu(gate), where x (..., 2 d) on CUDA is a and gate side by side; returns (..., d).

    Raises:
        ValueError: more elements than 32-bit places can count.
    """
    if x.numel() >= 2**32:
        raise ValueError(f"GEGLU of {x.numel()} elements: edit fewer pictures at a time")
    y: Tensor = _Geglu.apply(x)
    return y


@triton.jit
def _row(s, width, eps, N: tl.constexpr):
    """This program's row: its columns, which exist, their places; x_hat and 1 / std, float32."""
    columns = tl.arange(0, N)
    some = columns < width
    place = tl.program_id(0).to(tl.int64) * width + columns
    value = tl.load(s + place, mask=some, other=0.0).to(tl.float32)
    apart = tl.where(some, value - tl.sum(value, 0) / width, 0.0)
    rstd = 1 / tl.sqrt(tl.sum(apart * apart, 0) / width + eps)
    return columns, some, place, apart * rstd, rstd


@triton.jit
def _layer_norm(x, r, s, y, weight, bias, width, eps, ADD: tl.constexpr, N: tl.constexpr):
    """s = x + r, y = LayerNorm(s)."""
    if ADD:
        columns = tl.arange(0, N)
        some = columns < width
        place = tl.program_id(0).to(tl.int64) * width + columns
        value = tl.load(x + place, mask=some, other=0.0).to(tl.float32)
        value += tl.load(r + place, mask=some, other=0.0).to(tl.float32)
        # what the backward will see, rounded
        value = value.to(s.dtype.element_ty)
        tl.store(s + place, value, mask=some)
        value = value.to(tl.float32)
        apart = tl.where(some, value - tl.sum(value, 0) / width, 0.0)
        hat = apart / tl.sqrt(tl.sum(apart * apart, 0) / width + eps)
    else:
        columns, some, place, hat, _ = _row(s, width, eps, N)
    w = tl.load(weight + columns, mask=some, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=some, other=0.0).to(tl.float32)
    tl.store(y + place, (hat * w + b).to(y.dtype.element_ty), mask=some)


@triton.jit
def _layer_norm_gradient(s, ds, dy, dx, weight, width, eps, ADD: tl.constexpr, N: tl.constexpr):
    """dx = ds + (g - mean(g) - x_hat mean(g x_hat)) / std, where g = weight dy."""
    columns, some, place, hat, rstd = _row(s, width, eps, N)
    g = tl.load(dy + place, mask=some, other=0.0).to(tl.float32)
    g *= tl.load(weight + columns, mask=some, other=0.0).to(tl.float32)
    result = (g - tl.sum(g, 0) / width - hat * (tl.sum(g * hat, 0) / width)) * rstd
    if ADD:
        result += tl.load(ds + place, mask=some, other=0.0).to(tl.float32)
    tl.store(dx + place, result.to(dx.dtype.element_ty), mask=some)


def warps(width: int) -> int:
    """Few, so that a thread reads several neighbours and a row is summed by one of them."""
    return max(1, triton.next_power_of_2(width) // 512)


class _LayerNormOfSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, r: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        s = x.view_as(x) if r is None else torch.empty_like(x)
        y, width = torch.empty_like(x), x.shape[-1]
        shape = (width, eps, r is not None, triton.next_power_of_2(width))
        other = x if r is None else r.contiguous()
        rows = (x.numel() // width,)
        _layer_norm[rows](x, other, s, y, weight, bias, *shape, num_warps=warps(width))
        ctx.save_for_backward(s, weight)
        ctx.eps, ctx.summed = eps, r is not None
        ctx.set_materialize_grads(False)
        return s, y

    @staticmethod
    def backward(ctx: Any, ds: Tensor | None, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        s, weight = ctx.saved_tensors
        dx = ds
        if dy is not None:
            dx, width = torch.empty_like(s), s.shape[-1]
            shape = (width, ctx.eps, ds is not None, triton.next_power_of_2(width))
            other = dy if ds is None else ds.contiguous()
            rows = (s.numel() // width,)
            _layer_norm_gradient[rows](
                s, other, dy.contiguous(), dx, weight, *shape, num_warps=warps(width)
            )
        return dx, dx if ctx.summed else None, None, None, None


def layer_norm_of_sum(
    x: Tensor, r: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """s = x + r, and LayerNorm(s) with frozen weights.

    Args:
        x, r: (..., d) on CUDA, at most float32; without r, s is x.
        weight, bias: (d,).
        eps: added to the variance.
    """
    s, y = _LayerNormOfSum.apply(x, r, weight, bias, eps)
    return s, y
