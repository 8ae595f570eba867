"""Convolutions of a frozen UNet: their memory layout, and what they keep for the backward."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional

from gooddrag.backbones.blocks import FusedGroupNorm


def keep_channels_last(unet: UNet2DConditionModel) -> None:
    """Turn the weights of convolutions, and let no transformer block turn its maps back."""
    unet.to(memory_format=torch.channels_last)
    for module in unet.modules():
        if isinstance(module, Transformer2DModel):
            module._operate_on_continuous_inputs = MethodType(to_tokens, module)
            module._get_output_for_continuous_inputs = MethodType(from_tokens, module)


def to_tokens(block: Transformer2DModel, hidden_states: Tensor) -> tuple[Tensor, int]:
    """diffusers' own first lines of a transformer block: (b, c, h, w) to (b, h w, c'), and c'."""
    if isinstance(block.norm, FusedGroupNorm):
        block.residual, maps = block.norm.beside(hidden_states)
    else:
        block.residual, maps = hidden_states, block.norm(hidden_states)
    if not block.use_linear_projection:
        maps = pointwise(block.proj_in, maps)
    tokens = maps.permute(0, 2, 3, 1).flatten(1, 2)
    tokens = block.proj_in(tokens) if block.use_linear_projection else tokens
    return tokens, tokens.shape[-1]


def forget_residuals(unet: UNet2DConditionModel) -> None:
    """Let go of what a pass that failed has left in its transformer blocks."""
    for module in unet.modules():
        if isinstance(module, Transformer2DModel):
            module.residual = None


def from_tokens(
    block: Transformer2DModel,
    hidden_states: Tensor,
    residual: Tensor,
    batch_size: int,
    height: int,
    width: int,
    inner_dim: int,
) -> Tensor:
    """diffusers' own last lines of it, which turn every map channels first.

    The residual is read as `to_tokens` left it: its gradient is added where the norm's is made.
    """
    residual, block.residual = block.residual, None
    linear = block.use_linear_projection
    tokens = block.proj_out(hidden_states) if linear else hidden_states
    maps = tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)
    output: Tensor = (maps if linear else pointwise(block.proj_out, maps)) + residual
    return output


def pointwise(layer: nn.Module, maps: Tensor) -> Tensor:
    """A 1 x 1 convolution as the matrix that it is, which brings its bias along for nothing."""
    if isinstance(layer, nn.Conv2d):
        pixels = functional.linear(maps.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias)
        return pixels.permute(0, 3, 1, 2)
    mapped: Tensor = layer(maps)  # a LoRA is round it
    return mapped


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
