"""Mutual self-attention by one attention processor over named layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from jaxtyping import Bool
from torch import Tensor


def self_attention_layers(unet: UNet2DConditionModel) -> dict[str, Attention]:
    """The UNet's self-attention layers by name, in the order of its forward pass.

    SD 1.x and 2.x have 16: 0 to 5 down, 6 in the middle, 7 to 15 up.
    """
    modules = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    prefixes = (
        [f"down_blocks.{i}" for i in range(len(unet.down_blocks))]
        + ["mid_block"]
        + [f"up_blocks.{i}" for i in range(len(unet.up_blocks))]
    )
    return {
        f"{prefix}.{name}": layer
        for prefix, module in zip(prefixes, modules, strict=True)
        for name, layer in module.named_modules()
        if name.endswith("attn1") and isinstance(layer, Attention)
    }


class MutualSelfAttention:
    """Lets edited latents attend to the unedited ones beside them (attn_utils.py:101-105).

    In self-attention, keys and values come from the hidden states themselves; handing the layer
    the unedited branch's hidden states as its context gives exactly that branch's keys and values,
    LoRA included. The arithmetic is left to the layer's own processor.

    Args:
        processor: the layer's own.
        samples: which of the (unedited, edited) pairs in the batch.
    """

    def __init__(self, processor: object, samples: Bool[Tensor, " n"]) -> None:
        self.processor, self.samples = processor, samples

    def __call__(
        self, attn: Attention, hidden_states: Tensor, *args: object, **kwargs: object
    ) -> Tensor:
        """Attend; the batch holds (unedited, edited) pairs."""
        pairs = hidden_states.unflatten(0, (-1, 2))
        unedited = pairs[:, :1].expand_as(pairs)
        chosen = self.samples[(...,) + (None,) * (pairs.ndim - 1)]
        context = torch.where(chosen, unedited, pairs).flatten(0, 1)
        kwargs["encoder_hidden_states"] = context
        return self.processor(attn, hidden_states, **kwargs)  # type: ignore[operator]


class MutualLayers:
    """The UNet's self-attention layers, mutual on demand."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.layers = list(self_attention_layers(unet).values())
        self._on: tuple[int, Tensor] | None = None
        # one for each number of samples, at a fixed place, which recorded CUDA graphs read
        self._masks: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def mutual(
        self, samples: Bool[Tensor, " n"], start_layer: int, device: torch.device
    ) -> Iterator[None]:
        """Switch mutual attention on in the layers from `start_layer` on for chosen samples.

        Args:
            samples: which of the pairs, on the CPU.
            start_layer: the first layer concerned.
            device: of the UNet.

        Raises:
            ValueError: there is no such layer.
        """
        if not samples.any():
            yield
            return
        layers = self.layers[start_layer:]
        if not layers:
            raise ValueError(
                f"attention.start_layer must be below {len(self.layers)}, the number of "
                f"self-attention layers, found {start_layer}"
            )
        mask = self._mask(samples, device)
        own = [layer.processor for layer in layers]
        for layer, processor in zip(layers, own, strict=True):
            layer.set_processor(MutualSelfAttention(processor, mask))
        self._on = (start_layer, mask)
        try:
            yield
        finally:
            self._on = None
            for layer, processor in zip(layers, own, strict=True):
                layer.set_processor(processor)

    def _mask(self, samples: Bool[Tensor, " n"], device: torch.device) -> Tensor:
        """The mask on the device, sent there when it changes."""
        if len(samples) not in self._masks:
            self._masks[len(samples)] = (samples.clone(), samples.to(device, copy=True))
        sent, mask = self._masks[len(samples)]
        if not torch.equal(sent, samples):
            sent.copy_(samples)
            mask.copy_(samples)
        return mask

    def state(self) -> tuple[int | None, tuple[Tensor, ...]]:
        """What a pass depends on beside its inputs: the first mutual layer, and the mask."""
        return (None, ()) if self._on is None else (self._on[0], (self._on[1],))
