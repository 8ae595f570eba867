"""Attention with few and large products, in place of diffusers' own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention

# All kinds of attention but cuDNN's, which torch prefers where it can.
WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class FusedAttention:
    """Attention whose projections of one input are one product.

    The weights stand below one another in one matrix, of which the layers' own are parts, so that
    an adapter added to a layer's weight is in both.

    Args:
        attn: the layer.
        cudnn_attention: tokens from which cuDNN's attention may be chosen. It is the fastest on
            long sequences, but makes a plan for every shape at first use, which takes longer than
            all of an edit's attention over short ones.
    """

    def __init__(self, attn: Attention, cudnn_attention: int) -> None:
        self.cudnn_attention = cudnn_attention
        layers = [attn.to_q, attn.to_k, attn.to_v]
        self.joined = layers[1:] if attn.is_cross_attention else layers
        self.text: TextProjections | None = None
        self.place_in(torch.cat([layer.weight.detach() for layer in self.joined]))

    def place_in(self, matrix: Tensor) -> None:
        """Let the layers' weights be parts of a matrix that holds their values."""
        self.matrix = matrix
        sizes = [layer.out_features for layer in self.joined]
        for layer, part in zip(self.joined, matrix.split(sizes), strict=True):
            layer.weight = nn.Parameter(part, requires_grad=False)

    @staticmethod
    def fits(attn: Attention) -> bool:
        """Whether it is of the common kind: plain projections, nothing normed, added or scaled."""
        projections = (attn.to_q, attn.to_k, attn.to_v)
        return (
            isinstance(attn.processor, AttnProcessor2_0)
            and all(type(layer) is nn.Linear and layer.bias is None for layer in projections)
            and all(getattr(attn, name) is None for name in ("spatial_norm", "group_norm"))
            and all(getattr(attn, name) is None for name in ("norm_q", "norm_k"))
            and not attn.norm_cross
            and not attn.residual_connection
            and attn.rescale_output_factor == 1
        )

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from (b, n, d) to itself or to a context (b, m, d').

        Raises:
            ValueError: a mask, which this UNet has no use for.
        """
        if attention_mask is not None:
            raise ValueError("attention masks are not supported by engine.fused_kernels")
        q, k, v = self._project(attn, hidden_states, encoder_hidden_states)
        y = self._attend(q, k, v, attn)
        output: Tensor = attn.to_out[0](y)
        return output

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, attn: Attention) -> Tensor:
        """Each head's weighted mean of values, side by side."""
        if attn.is_cross_attention and q.is_cuda and not is_compiling():
            from gooddrag.kernels import text

            if text.fits(q, k, v):
                return text.attend_to_text(q, k, v, attn.heads)
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
        if q.shape[2] >= self.cudnn_attention:
            y = scaled_dot_product_attention(q, k, v)
        else:
            with sdpa_kernel(WITHOUT_PLANS):
                y = scaled_dot_product_attention(q, k, v)
        return y.transpose(1, 2).flatten(2)

    def _project(
        self, attn: Attention, x: Tensor, context: Tensor | None
    ) -> tuple[Tensor, ...] | list[Tensor]:
        """Queries of x; keys and values of the context, or of x."""
        if any(has_adapter(layer) for layer in (attn.to_q, attn.to_k, attn.to_v)):
            context = x if context is None else context
            return [attn.to_q(x), attn.to_k(context), attn.to_v(context)]
        matrix = self._matrix()
        if context is None and len(self.joined) == 3:
            return linear(x, matrix).chunk(3, dim=-1)
        if matrix is self.matrix and self.text is not None and context is not None:
            return attn.to_q(x), *self.text.of(self, context).chunk(2, dim=-1)
        context = x if context is None else context
        size = 2 * attn.to_v.out_features
        return attn.to_q(x), *linear(context, matrix[-size:]).chunk(2, dim=-1)

    def _matrix(self) -> Tensor:
        """The projections' weights below one another, or what stands in for them in this pass."""
        weights = [layer.weight for layer in self.joined]
        own = all(isinstance(weight, nn.Parameter) for weight in weights)
        return self.matrix if own else torch.cat(weights)


class TextProjections:
    """Keys and values of the text for all layers that attend to it, in one product a pass.

    The layers' matrices stand below one another in one, of which they are parts.

    Args:
        layers: of cross-attention, all to one text.
    """

    def __init__(self, layers: Sequence[FusedAttention]) -> None:
        self.layers = list(layers)
        self.matrix = torch.cat([layer.matrix for layer in layers])
        self._sizes = [len(layer.matrix) for layer in layers]
        for layer, part in zip(layers, self.matrix.split(self._sizes), strict=True):
            layer.place_in(part)
            layer.text = self
        self.forget()

    def forget(self, *_: object) -> None:
        """A pass begins: a graph that is recorded has to make them itself."""
        self._context: Tensor | None = None
        self._projected: dict[FusedAttention, Tensor] = {}

    def of(self, layer: FusedAttention, context: Tensor) -> Tensor:
        """Keys and values of a layer side by side, given the text (b, m, d)."""
        if context is not self._context:
            parts = linear(context, self.matrix).split(self._sizes, dim=-1)
            self._context, self._projected = context, dict(zip(self.layers, parts, strict=True))
        return self._projected[layer]


def has_adapter(layer: nn.Module) -> bool:
    """Whether a projection is more than its weight at present."""
    if not isinstance(layer, LoraLayer):
        return type(layer) is not nn.Linear
    return not layer.disable_adapters or type(layer.get_base_layer()) is not nn.Linear
