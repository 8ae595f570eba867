"""Mutual self-attention by one attention processor over named layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
        read: where the unedited branch's hidden states go that are attended to, None to drop them.
    """

    def __init__(
        self, processor: object, samples: Bool[Tensor, " n"], read: list[Tensor] | None
    ) -> None:
        self.processor, self.samples, self.read = processor, samples, read

    def __call__(
        self, attn: Attention, hidden_states: Tensor, *args: object, **kwargs: object
    ) -> Tensor:
        """Attend; the batch holds (unedited, edited) pairs."""
        pairs = hidden_states.unflatten(0, (-1, 2))
        if self.read is not None:
            self.read.append(pairs[:, 0])
        unedited = pairs[:, :1].expand_as(pairs)
        chosen = self.samples[(...,) + (None,) * (pairs.ndim - 1)]
        context = torch.where(chosen, unedited, pairs).flatten(0, 1)
        kwargs["encoder_hidden_states"] = context
        return self.processor(attn, hidden_states, **kwargs)  # type: ignore[operator]


class AttentionBeside:
    """The same where the edited latents go alone, and the hidden states are known.

    Args:
        processor: the layer's own.
        given: the hidden states of all such layers, from which the next is taken.
    """

    def __init__(self, processor: object, given: list[Tensor]) -> None:
        self.processor, self.given = processor, given

    def __call__(
        self, attn: Attention, hidden_states: Tensor, *args: object, **kwargs: object
    ) -> Tensor:
        """Attend to what is given."""
        kwargs["encoder_hidden_states"] = self.given.pop(0)
        return self.processor(attn, hidden_states, **kwargs)  # type: ignore[operator]


class MutualLayers:
    """The UNet's self-attention layers, mutual on demand.

    Attributes:
        given: hidden states of the unedited branch that the next passes attend to.
        kept: those of the last pass, where they are kept.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.layers = list(self_attention_layers(unet).values())
        self.given: tuple[Tensor, ...] = ()
        self.kept: tuple[Tensor, ...] = ()
        self._name: tuple[object, ...] = ()
        self._on: tuple[Tensor, ...] = ()
        self._passing: list[Tensor] = []  # hidden states within a pass, in the layers' order
        # one for each number of samples, at a fixed place, which recorded CUDA graphs read
        self._masks: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def mutual(
        self,
        samples: Bool[Tensor, " n"],
        start_layer: int,
        device: torch.device,
        keep: bool = False,
    ) -> Iterator[None]:
        """Switch mutual attention on in the layers from `start_layer` on for chosen samples.

        Args:
            samples: which of the pairs, on the CPU.
            start_layer: the first layer concerned.
            device: of the UNet.
            keep: what the layers read of the unedited branch, in `kept`.

        Raises:
            ValueError: there is no such layer.
        """
        if not samples.any():
            yield
            return
        mask = self._mask(samples, device)
        read = self._passing if keep else None
        with self._replaced(start_layer, lambda own: MutualSelfAttention(own, mask, read)):
            self._name, self._on = (start_layer, keep), (mask,)
            try:
                yield
            finally:
                self._name, self._on, self.kept = (), (), ()

    @contextmanager
    def beside(self, hidden: Sequence[Tensor]) -> Iterator[None]:
        """Let the last layers attend to hidden states of the unedited branch, one for each."""
        if not hidden:
            yield
            return
        start_layer = len(self.layers) - len(hidden)
        with self._replaced(start_layer, lambda own: AttentionBeside(own, self._passing)):
            self._name, self.given = (start_layer, "beside"), tuple(hidden)
            try:
                yield
            finally:
                self._name, self.given = (), ()

    @contextmanager
    def _replaced(
        self, start_layer: int, processor_of: Callable[[object], object]
    ) -> Iterator[None]:
        layers = self.layers[start_layer:]
        if not layers:
            raise ValueError(
                f"attention.start_layer must be below {len(self.layers)}, the number of "
                f"self-attention layers, found {start_layer}"
            )
        own = [layer.processor for layer in layers]
        for layer, processor in zip(layers, own, strict=True):
            layer.set_processor(processor_of(processor))
        try:
            yield
        finally:
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

    def state(self) -> tuple[tuple[object, ...], tuple[Tensor, ...]]:
        """What a pass depends on beside its inputs: how the layers attend, and the mask."""
        return self._name, self._on

    def enter_pass(self, given: Sequence[Tensor]) -> None:
        """A pass begins, with what it has been given, wherever that lies."""
        self._passing[:] = given

    def leave_pass(self) -> tuple[Tensor, ...]:
        """What a pass has kept."""
        kept = tuple(self._passing)
        self._passing.clear()
        return kept
