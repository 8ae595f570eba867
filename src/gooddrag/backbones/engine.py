"""What makes a UNet fast without changing what it computes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional

AUTO = "auto"
LARGEST_GROUP = 128  # channels that the fused kernel can hold


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Switches, true, false or "auto".

    Attributes:
        graphs: replay the UNet's passes as CUDA graphs; auto: on CUDA.
        max_graphs: how many to keep, one for each shape and kind of pass.
        channels_last: memory layout of convolutions; auto: on CUDA.
        fused_norms: GroupNorm and SiLU in one kernel; auto: on CUDA below float64, with Triton.
        merge_adapters: add a LoRA that the whole batch shares to the weights while it is in use.
        compile: torch.compile for the UNet; the first edit then takes minutes.

    Raises:
        ValueError: another word, or what the device cannot do.
    """

    graphs: bool | str
    max_graphs: int
    channels_last: bool | str
    fused_norms: bool | str
    merge_adapters: bool | str  # what a configuration may hold: words are refused below
    compile: bool | str

    def __post_init__(self) -> None:
        for name in ("graphs", "channels_last", "fused_norms"):
            if getattr(self, name) not in (True, False, AUTO):
                raise ValueError(
                    f"engine.{name} must be true, false or auto, found {getattr(self, name)!r}"
                )
        for name in ("merge_adapters", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"engine.{name} must be true or false, found {getattr(self, name)!r}"
                )
        if self.max_graphs < 1:
            raise ValueError(f"engine.max_graphs must be at least 1, found {self.max_graphs}")

    def on(self, device: torch.device, dtype: torch.dtype) -> Engine:
        """Decide what is left to decide, for one device and precision."""
        cuda = device.type == "cuda"
        # torch.compile fuses by itself, and better
        fusing = cuda and dtype != torch.float64 and _has_triton() and not self.compile
        automatic = {"graphs": cuda, "channels_last": cuda, "fused_norms": fusing}
        for name in ("graphs", "fused_norms"):
            if getattr(self, name) is True and not automatic[name]:
                raise ValueError(
                    f"engine.{name}=true needs CUDA (fused_norms: Triton, a precision below "
                    f"float64 and engine.compile=false), found {dtype} on {device}: "
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
            unet.to(memory_format=torch.channels_last)
            for module in unet.modules():
                if isinstance(module, Transformer2DModel):
                    module._get_output_for_continuous_inputs = MethodType(_from_tokens, module)
        if self.fused_norms:
            fuse_norms(unet)
            compile_kernels(unet)
        if self.compile:
            unet.compile()


class FusedGroupNorm(nn.Module):
    """A frozen GroupNorm, with SiLU behind it if asked for, in one kernel on CUDA.

    Args:
        norm: whose weights are shared, under the same names.
        silu: whether SiLU follows.
    """

    def __init__(self, norm: nn.GroupNorm, silu: bool) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps, self.silu = norm.num_groups, norm.eps, silu
        self.fits = norm.num_channels // norm.num_groups <= LARGEST_GROUP

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (b, c, h, w) over (c / groups, h, w); what is no map goes torch's way."""
        if x.ndim == 4 and x.is_cuda and self.fits:
            from gooddrag.kernels import group_norm

            return group_norm(x, self.weight, self.bias, self.groups, self.eps, self.silu)
        y = functional.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        return functional.silu(y) if self.silu else y


def fuse_norms(unet: UNet2DConditionModel) -> None:
    """Let every GroupNorm of the UNet run fused, with the SiLU behind it where there is one."""
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D) and _can_be_fused(module):
            module.norm1 = FusedGroupNorm(module.norm1, silu=True)
            module.norm2 = FusedGroupNorm(module.norm2, silu=True)
            # the block's SiLU served the time embedding too
            module.nonlinearity = nn.Identity()
            module.time_emb_proj.register_forward_pre_hook(_silu_before)
        elif isinstance(module, Transformer2DModel) and isinstance(module.norm, nn.GroupNorm):
            module.norm = FusedGroupNorm(module.norm, silu=False)
    if isinstance(unet.conv_norm_out, nn.GroupNorm) and isinstance(unet.conv_act, nn.SiLU):
        unet.conv_norm_out = FusedGroupNorm(unet.conv_norm_out, silu=True)
        unet.conv_act = nn.Identity()


def _can_be_fused(block: ResnetBlock2D) -> bool:
    """Whether SiLU follows both norms directly, and the time embedding is added."""
    return (
        isinstance(block.nonlinearity, nn.SiLU)
        and block.time_embedding_norm == "default"
        and block.time_emb_proj is not None
        and not block.skip_time_act
    )


def compile_kernels(unet: UNet2DConditionModel) -> None:
    """Have the kernels made, or fetched from Triton's cache, now and not in the first edit."""
    if unet.device.type != "cuda":
        return
    for norm in (module for module in unet.modules() if isinstance(module, FusedGroupNorm)):
        x = torch.zeros(1, len(norm.weight), 8, 8, device=unet.device, dtype=unet.dtype)
        norm(x.requires_grad_()).sum().backward()


def _from_tokens(
    block: Transformer2DModel,
    hidden_states: Tensor,
    residual: Tensor,
    batch_size: int,
    height: int,
    width: int,
    inner_dim: int,
) -> Tensor:
    """diffusers' own last lines of a transformer block, which turn every map channels first."""
    linear = block.use_linear_projection
    tokens = block.proj_out(hidden_states) if linear else hidden_states
    maps = tokens.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
    output: Tensor = (maps if linear else block.proj_out(maps)) + residual
    return output


def _silu_before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (functional.silu(args[0]), *args[1:])


def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True
