"""What makes a UNet fast without changing what it computes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from gooddrag.backbones.blocks import compile_blocks, compile_kernels, fuse
from gooddrag.backbones.layers import freeze_convolutions, keep_channels_last

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Switches, true, false or "auto".

    Attributes:
        graphs: replay the UNet's passes as CUDA graphs; auto: on CUDA.
        max_graphs: how many to keep, one for each shape and kind of pass.
        channels_last: memory layout of convolutions; auto: on CUDA.
        fused_kernels: one kernel for all that lies between two products or convolutions; auto: on
            CUDA below float64, with Triton.
        frozen_convolutions: convolutions forget their inputs, which only gradients of their weights
            need; auto: on CUDA.
        cudnn_attention: tokens from which fused kernels let torch choose cuDNN's attention.
        merge_adapters: add a LoRA that the whole batch shares to the weights while it is in use,
            or, without low memory, at each pass while it is trained.
        compile: torch.compile for the transformer blocks, minutes at first.

    Raises:
        ValueError: another word, or what the device cannot do.
    """

    graphs: bool | str
    max_graphs: int
    channels_last: bool | str
    fused_kernels: bool | str
    frozen_convolutions: bool | str
    cudnn_attention: int
    merge_adapters: bool | str  # what a configuration may hold: words are refused below
    compile: bool | str

    def __post_init__(self) -> None:
        for name in ("graphs", "channels_last", "fused_kernels", "frozen_convolutions"):
            if getattr(self, name) not in (True, False, AUTO):
                raise ValueError(
                    f"engine.{name} must be true, false or auto, found {getattr(self, name)!r}"
                )
        for name in ("merge_adapters", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"engine.{name} must be true or false, found {getattr(self, name)!r}"
                )
        if self.cudnn_attention < 0:
            raise ValueError(
                f"engine.cudnn_attention cannot be negative, found {self.cudnn_attention}"
            )
        if self.max_graphs < 1:
            raise ValueError(f"engine.max_graphs must be at least 1, found {self.max_graphs}")

    def on(self, device: torch.device, dtype: torch.dtype) -> Engine:
        """Decide what is left to decide, for one device and precision."""
        cuda = device.type == "cuda"
        fusing = cuda and dtype != torch.float64 and _has_triton()
        automatic = {
            "graphs": cuda,
            "channels_last": cuda,
            "fused_kernels": fusing,
            "frozen_convolutions": cuda,
        }
        for name in ("graphs", "fused_kernels"):
            if getattr(self, name) is True and not automatic[name]:
                raise ValueError(
                    f"engine.{name}=true needs CUDA (fused_kernels: Triton, and a precision "
                    f"below float64), found {dtype} on {device}: "
                    f"take engine.{name}=auto"
                )
        chosen: dict[str, Any] = {
            name: value if getattr(self, name) == AUTO else getattr(self, name)
            for name, value in automatic.items()
        }
        return replace(self, **chosen)

    def prepare(self, unet: UNet2DConditionModel) -> None:
        """Rebuild a frozen UNet in place; names and values of its weights stay."""
        if self.channels_last:
            keep_channels_last(unet)
        if self.frozen_convolutions:
            freeze_convolutions(unet)
        if self.fused_kernels:
            fuse(unet, self.cudnn_attention, join_text=not self.compile)
            compile_kernels(unet)
        if self.compile:
            compile_blocks(unet)


def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True
