"""Devices, number formats, and gradients too small for half precision."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# float16 cannot hold this loss's small gradients; the factor is exact and undone on the way out
HALF_GRADIENT_SCALE = 2.0**12


def choose_device(device: str) -> torch.device:
    """Of "auto": CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: the device asked for is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(
            f"backbone.device must be auto, cpu, cuda, cuda:N or mps, found {device!r}"
        ) from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is available: take backbone.device=cpu")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("no MPS device is available: take backbone.device=cpu")
    if chosen.type == "cuda" and chosen.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    if chosen.type == "cuda" and chosen.index >= torch.cuda.device_count():
        raise ValueError(f"there is no {device}: {torch.cuda.device_count()} CUDA devices are here")
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Of "auto": bfloat16 on CUDA (float16 where the chip has none), float32 elsewhere.

    Raises:
        ValueError: an unknown precision, or float64 on MPS.
    """
    if dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        with torch.cuda.device(device):
            in_hardware = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if in_hardware else torch.float16
    if dtype not in DTYPES:
        raise ValueError(
            f"backbone.dtype must be auto or one of {', '.join(DTYPES)}, found {dtype!r}"
        )
    if device.type == "mps" and dtype == "float64":
        raise ValueError("MPS has no float64: take backbone.device=cpu for it")
    return DTYPES[dtype]


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself, with its gradient multiplied on the way back."""
    if factor == 1:
        return x
    return _ScaleGradient.apply(x, factor)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None  # type: ignore[attr-defined]
