"""Attention from many queries to the few tokens of a frozen text, one kernel each way.

The text fits one tile, so that a program holds all of a row's softmax, and a gradient is wanted for
the queries alone. torch's backward deals keys out to programs in blocks, of which a text is one,
and makes gradients of keys and values as well, which nobody reads. Sums are float32; the backward
keeps nothing but the inputs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 64  # queries of a program
TOKENS = 128  # the most that a text may have
PART = 64  # of a head's width that is read at a time


@triton.jit
def _queries(x, n, heads, part, d: tl.constexpr, R: tl.constexpr, D: tl.constexpr):
    """Places of a part of this program's queries (R, D) in (b, n, heads, d), and which exist."""
    rows = tl.program_id(0) * R + tl.arange(0, R)
    columns = part + tl.arange(0, D)
    inside = (rows < n)[:, None] & (columns < d)[None, :]
    first = tl.program_id(2).to(tl.int64) * n
    return x + ((first + rows) * heads + tl.program_id(1))[:, None] * d + columns, inside


@triton.jit
def _text(x, batch, row, m, part, d: tl.constexpr, M: tl.constexpr, D: tl.constexpr):
    """A part of this program's keys, or values (M, D)."""
    tokens, columns = tl.arange(0, M), part + tl.arange(0, D)
    inside = (tokens < m)[:, None] & (columns < d)[None, :]
    place = tl.program_id(2).to(tl.int64) * batch + tokens[:, None] * row
    return tl.load(x + place + tl.program_id(1) * d + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _products(
    q, k, batch, row, n, m, heads,
    d: tl.constexpr, R: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """q k^T (R, M), summed over the parts of a head."""
    total = tl.zeros((R, M), tl.float32)
    for part in tl.static_range(0, d, D):
        place, inside = _queries(q, n, heads, part, d, R, D)
        own = tl.load(place, mask=inside, other=0.0)
        total = tl.dot(own, tl.trans(_text(k, batch, row, m, part, d, M, D)), total)
    return total


@triton.jit
def _softmax(s, m, M: tl.constexpr):
    """Of the tokens that exist."""
    s = tl.where((tl.arange(0, M) < m)[None, :], s, -float("inf"))
    p = tl.exp(s - tl.max(s, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]


@triton.jit(do_not_specialize=["n", "m"])
def _attend(
    q, k, v, y, k_batch, k_row, v_batch, v_row, n, m, heads, scale,
    d: tl.constexpr, R: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """y = p v, where p = softmax(q k^T scale)."""
    p = _softmax(_products(q, k, k_batch, k_row, n, m, heads, d, R, M, D) * scale, m, M)
    p = p.to(y.dtype.element_ty)
    for part in tl.static_range(0, d, D):
        place, inside = _queries(y, n, heads, part, d, R, D)
        result = tl.dot(p, _text(v, v_batch, v_row, m, part, d, M, D))
        tl.store(place, result.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n", "m"])
def _attend_gradient(
    q, k, v, dy, dq, k_batch, k_row, v_batch, v_row, n, m, heads, scale,
    d: tl.constexpr, R: tl.constexpr, M: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """dq = p (dp - sum(p dp)) k scale, where dp = dy v^T."""
    p = _softmax(_products(q, k, k_batch, k_row, n, m, heads, d, R, M, D) * scale, m, M)
    dp = _products(dy, v, v_batch, v_row, n, m, heads, d, R, M, D)
    ds = (p * (dp - tl.sum(p * dp, 1)[:, None]) * scale).to(dq.dtype.element_ty)
    for part in tl.static_range(0, d, D):
        place, inside = _queries(dq, n, heads, part, d, R, D)
        result = tl.dot(ds, _text(k, k_batch, k_row, m, part, d, M, D))
        tl.store(place, result.to(dq.dtype.element_ty), mask=inside)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        q = q.contiguous()
        y = torch.empty_like(q)
        (b, n, width), m = q.shape, k.shape[1]
        d = width // heads
        strides = (k.stride(0), k.stride(1), v.stride(0), v.stride(1))
        tiles = (ROWS, max(16, triton.next_power_of_2(m)), PART)  # 16: the least that `dot` takes
        ctx.grid = (triton.cdiv(n, ROWS), heads, b)
        ctx.numbers = (*strides, n, m, heads, d**-0.5, d, *tiles)
        _attend[ctx.grid](q, k, v, y, *ctx.numbers)
        ctx.save_for_backward(q, k, v)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        dq = torch.empty_like(q)
        _attend_gradient[ctx.grid](q, k, v, dy.contiguous(), dq, *ctx.numbers)
        return dq, None, None, None


def fits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `attend_to_text` can do it: 16 bits, and a short text that is not trained."""
    frozen = not (k.requires_grad or v.requires_grad)
    in_rows = k.stride(-1) == v.stride(-1) == 1
    halves = q.dtype == k.dtype == v.dtype and q.dtype in (torch.bfloat16, torch.float16)
    return frozen and in_rows and halves and k.shape[1] <= TOKENS


def attend_to_text(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention to keys and values that get no gradient; see `fits`.

    Args:
        q: (b, n, heads d), on CUDA.
        k, v: (b, m, heads d), which may be parts of wider tensors.
        heads: that many, side by side.
    """
    y: Tensor = _Attend.apply(q, k, v, heads)
    return y
