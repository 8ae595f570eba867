"""Layers of a frozen UNet that compute the same in less time or memory."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional


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
        self.size = norm.num_channels // norm.num_groups

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (b, c, h, w) over (c / groups, h, w); what does not fit goes torch's way."""
        if x.ndim == 4 and x.is_cuda:
            from gooddrag.kernels import MEMBERS, group_norm

            if self.size <= MEMBERS:
                return group_norm(x, self.weight, self.bias, self.groups, self.eps, self.silu)
        y = functional.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        return functional.silu(y) if self.silu else y


class FusedGEGLU(GEGLU):
    """A linear layer whose one half gates the other, the gating in one kernel on CUDA."""

    def forward(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        """Map (..., d_in) to (..., d_out)."""
        if not hidden_states.is_cuda:
            y: Tensor = super().forward(hidden_states)
            return y
        from gooddrag.kernels import geglu

        return geglu(self.proj(hidden_states))


def fuse_kernels(unet: UNet2DConditionModel) -> None:
    """Let every GroupNorm, with the SiLU behind it where there is one, and GEGLU run fused."""
    for module in unet.modules():
        if type(module) is GEGLU:
            module.__class__ = FusedGEGLU
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
    for module in unet.modules():
        if isinstance(module, FusedGroupNorm):
            shape: tuple[int, ...] = (1, len(module.weight), 8, 8)
        elif isinstance(module, FusedGEGLU):
            shape = (1, 8, module.proj.in_features)
        else:
            continue
        x = torch.zeros(shape, device=unet.device, dtype=unet.dtype)
        module(x.requires_grad_()).sum().backward()


def from_tokens(
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


def keep_channels_last(unet: UNet2DConditionModel) -> None:
    """Turn the weights of convolutions, and let no transformer block turn its maps back."""
    unet.to(memory_format=torch.channels_last)
    for module in unet.modules():
        if isinstance(module, Transformer2DModel):
            module._get_output_for_continuous_inputs = MethodType(from_tokens, module)


def freeze_convolutions(unet: UNet2DConditionModel) -> None:
    """Let every convolution of the UNet be a `FrozenConvolution`, in its place."""
    for module in unet.modules():
        plain = type(module) is nn.Conv2d and module.padding_mode == "zeros"
        if plain and not isinstance(module.padding, str):
            module.__class__ = FrozenConvolution


class FrozenConvolution(nn.Conv2d):
    """A convolution that does not keep its input.

    torch keeps it for the gradient of the weight, which nobody wants here.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        if trained or not x.requires_grad:
            return super()._conv_forward(x, weight, bias)
        settings = (self.stride, self.padding, self.dilation, self.groups)
        y: Tensor = _FrozenConvolution.apply(x, weight, bias, *settings)
        return y


class _FrozenConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        ctx.weight, ctx.settings = weight, settings
        last = x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        ctx.like = {"size": x.shape, "dtype": x.dtype, "device": x.device, "memory_format": layout}
        return functional.conv2d(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        stride, padding, dilation, groups = ctx.settings
        dx, _, _ = torch.ops.aten.convolution_backward(
            gradient,
            torch.empty(**ctx.like),  # read for its shape and layout alone
            ctx.weight,
            None,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            (True, False, False),
        )
        return dx, *[None] * (2 + len(ctx.settings))
