"""Layers in which each sample of a batch has matrices of its own."""

from __future__ import annotations

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional


class PerSampleLinear(nn.Module):
    """A bias-free linear map with its own matrix for each sample of the batch.

    Attributes:
        weight: (samples, out, in), in the precision of what passes through.
    """

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (samples * m, ..., in); also (samples * m, in, h, w), as a 1 x 1 convolution."""
        if x.ndim == 4:
            return self(x.flatten(2).mT).mT.unflatten(2, x.shape[2:])
        weight = self.weight
        if len(weight) == 1:  # the same product; a batched one of one is slow on CPUs
            return functional.linear(x, weight.flatten(0, 1))
        rows = x.reshape(len(weight), -1, x.shape[-1])
        return torch.bmm(rows, weight.mT).reshape(*x.shape[:-1], -1)

    def add(self, total: Tensor, x: Tensor) -> Tensor:
        """total + self(x), where both end in features, in one product."""
        if x.ndim == 4:
            return total + self(x)
        weight = self.weight
        if len(weight) == 1:
            flat = torch.addmm(total.flatten(0, -2), x.flatten(0, -2), weight.flatten(0, 1).mT)
        else:
            total_rows, rows = (y.reshape(len(weight), -1, y.shape[-1]) for y in (total, x))
            flat = torch.baddbmm(total_rows, rows, weight.mT)
        return flat.view(total.shape)


class PerSampleWeights(nn.Linear):
    """A projection of the UNet while each sample has weights of its own.

    Attributes:
        own: (samples, out, in), in place of `weight`.
    """

    own: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (samples * m, ..., in)."""
        rows = x.reshape(len(self.own), -1, x.shape[-1])
        y = torch.bmm(rows, self.own.mT)
        return (y if self.bias is None else y + self.bias).reshape(*x.shape[:-1], -1)


class AddedAdapter:
    """PEFT's way to say how a LoRA is applied: W x + B A x, without a scale to multiply by."""

    @staticmethod
    def forward(
        module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: object
    ) -> Tensor:
        """Add the adapter's part to the layer's own result."""
        hidden = module.lora_A[active_adapter](x)
        total: Tensor = module.lora_B[active_adapter].add(result, hidden)
        return total
