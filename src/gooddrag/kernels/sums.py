"""Sums of feature maps (b, c, h, w) in channels-last memory, with a bias, in one kernel.

Arithmetic is float32 whatever the precision of the tensors.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # elements of a program


@triton.jit
def _add(x, r, bias, y, total, channels, N: tl.constexpr):
    """y = x + r + bias."""
    own = tl.program_id(0) * N + tl.arange(0, N)
    some = own < total
    value = tl.load(x + own, mask=some, other=0.0).to(tl.float32)
    value += tl.load(r + own, mask=some, other=0.0).to(tl.float32)
    value += tl.load(bias + own % channels, mask=some, other=0.0).to(tl.float32)
    tl.store(y + own, value.to(y.dtype.element_ty), mask=some)


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, r: Tensor, bias: Tensor) -> Tensor:
        x, r = (z.contiguous(memory_format=torch.channels_last) for z in (x, r))
        y = torch.empty_like(x)
        _add[(triton.cdiv(x.numel(), BLOCK),)](x, r, bias, y, x.numel(), len(bias), BLOCK)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return dy, dy, None


def add(x: Tensor, r: Tensor, bias: Tensor) -> Tensor:
    """x + r + bias, (b, c, h, w) on CUDA, with a frozen bias (c,)."""
    y: Tensor = _Add.apply(x, r, bias)
    return y
