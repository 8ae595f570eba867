"""The UNet's blocks with fewer passes over memory: the same layers and weights, fused in between.

What lies between two products or convolutions (a bias, the time embedding, a residual, a norm, an
activation) is one kernel on CUDA, and torch's own operations elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import functional

from gooddrag.backbones.attention import FusedAttention, TextProjections

KINDS = 128  # of passes and sizes that torch.compile keeps a block for; then it compiles no more


def fuse(unet: UNet2DConditionModel, cudnn_attention: int, *, join_text: bool = True) -> None:
    """Let every block of the UNet that can run fused; names and values of its weights stay.

    Args:
        unet: frozen.
        cudnn_attention: see `FusedAttention`.
        join_text: one product a pass for all layers that attend to the text.
    """
    residual = [m for m in unet.modules() if isinstance(m, ResnetBlock2D)]
    residual = [block for block in residual if FusedResnetBlock.fits(block)]
    offsets = TimeOffsets(residual) if residual else None
    for block in residual:
        block.norm1 = FusedGroupNorm(block.norm1, silu=True)
        block.norm2 = FusedGroupNorm(block.norm2, silu=True)
        block.__class__, block.offsets = FusedResnetBlock, offsets
        last = [layer for layer in (block.conv2, block.conv_shortcut) if layer is not None]
        block.added = sum(layer.bias.detach() for layer in last if layer.bias is not None)
    crossing: list[FusedAttention] = []
    for module in list(unet.modules()):
        if isinstance(module, Transformer2DModel) and isinstance(module.norm, nn.GroupNorm):
            module.norm = FusedGroupNorm(module.norm, silu=False)
        elif isinstance(module, BasicTransformerBlock) and FusedTransformerBlock.fits(module):
            module.__class__ = FusedTransformerBlock
        elif isinstance(module, Attention) and FusedAttention.fits(module):
            module.set_processor(FusedAttention(module, cudnn_attention))
            if module.is_cross_attention:
                crossing.append(module.processor)
        elif type(module) is GEGLU:
            module.__class__ = FusedGEGLU
    if join_text and len({layer.matrix.shape[1] for layer in crossing}) == 1:
        unet.register_forward_pre_hook(TextProjections(crossing).forget)
    if isinstance(unet.conv_norm_out, nn.GroupNorm) and isinstance(unet.conv_act, nn.SiLU):
        unet.conv_norm_out = FusedGroupNorm(unet.conv_norm_out, silu=True)
        unet.conv_act = nn.Identity()


class FusedGroupNorm(nn.Module):
    """A frozen GroupNorm, with SiLU behind it if asked for.

    Args:
        norm: whose weights are shared, under the same names.
        silu: whether SiLU follows.
    """

    def __init__(self, norm: nn.GroupNorm, silu: bool) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps, self.silu = norm.num_groups, norm.eps, silu
        self.size = norm.num_channels // norm.num_groups

    def forward(self, x: Tensor, offset: Tensor | None = None) -> Tensor:
        """Normalise x (b, c, h, w) + offset (b, c) over (c / groups, h, w)."""
        return self.beside(x, offset)[1]

    def beside(self, x: Tensor, offset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x, for who reads it beside its norm, and the norm; see `kernels.maps.group_norm`."""
        if x.is_cuda and not (offset is not None and offset.requires_grad):
            from gooddrag.kernels.maps import MEMBERS, group_norm

            if self.size <= MEMBERS:
                settings = (self.weight, self.bias, self.groups, self.eps, self.silu)
                return group_norm(x, offset, *settings)
        moved = x if offset is None else x + offset[:, :, None, None]
        y = functional.group_norm(moved, self.groups, self.weight, self.bias, self.eps)
        return x, functional.silu(y) if self.silu else y


class TimeOffsets:
    """What the time embedding adds between a block's convolutions, for all blocks in one product.

    The first convolution's bias is part of it. The projections' weights stand below one another in
    one matrix, of which the layers' own are parts, so that an adapter added to a layer's weight is
    in both.

    Args:
        blocks: all that are given the same time embedding.
    """

    def __init__(self, blocks: Sequence[ResnetBlock2D]) -> None:
        layers = [block.time_emb_proj for block in blocks]
        biases = [block.time_emb_proj.bias + block.conv1.bias for block in blocks]
        self.matrix = torch.cat([layer.weight.detach() for layer in layers])
        self.bias = torch.cat(biases).detach()
        self._sizes = [layer.out_features for layer in layers]
        self._parts = self.matrix.split(self._sizes)
        for i, (block, part) in enumerate(zip(blocks, self._parts, strict=True)):
            block.time_emb_proj.weight = nn.Parameter(part, requires_grad=False)
            block.place = i
        self._time: Tensor | None = None
        self._offsets: tuple[Tensor, ...] = ()

    def of(self, block: FusedResnetBlock, time: Tensor) -> Tensor:
        """The block's offset (b, c), given the time embedding (b, d)."""
        layer = block.time_emb_proj
        own = layer.weight.data_ptr() == self._parts[block.place].data_ptr()
        if type(layer) is not nn.Linear or not own:  # an adapter is beside it, or trained in it
            output: Tensor = layer(functional.silu(time)) + block.conv1.bias
            return output
        if time is not self._time:
            product = functional.linear(functional.silu(time), self.matrix, self.bias)
            self._time, self._offsets = time, product.split(self._sizes, dim=-1)
        return self._offsets[block.place]


class FusedResnetBlock(ResnetBlock2D):
    """Two convolutions with the time embedding between them, and the input added at the end.

    The biases of the convolutions ride along with what is added anyway.

    Attributes:
        offsets: of all blocks.
        place: among them.
        added: the biases of the last convolution and of the shortcut.
    """

    offsets: TimeOffsets
    place: int
    added: Tensor

    @staticmethod
    def fits(block: ResnetBlock2D) -> bool:
        """Whether it is of the common kind: nothing resized, scaled or left out."""
        return (
            type(block) is ResnetBlock2D
            and isinstance(block.nonlinearity, nn.SiLU)
            and block.time_embedding_norm == "default"
            and type(block.time_emb_proj) is nn.Linear
            and block.time_emb_proj.bias is not None
            and not block.skip_time_act
            and block.upsample is None
            and block.downsample is None
            and block.output_scale_factor == 1
            and all(layer.bias is not None for layer in (block.conv1, block.conv2))
        )

    def forward(self, input_tensor: Tensor, temb: Tensor, *_: object, **__: object) -> Tensor:
        """Map (b, c_in, h, w) to (b, c_out, h, w), given the time embedding (1 or b, d)."""
        x, h = self.norm1.beside(input_tensor)
        h = without_bias(self.conv1, h)
        h = without_bias(self.conv2, self.norm2(h, self.offsets.of(self, temb)))
        if self.conv_shortcut is not None:
            x = without_bias(self.conv_shortcut, x)
        if h.is_cuda:
            from gooddrag.kernels.sums import add

            return add(x, h, self.added)
        return x + h + self.added[:, None, None]


def without_bias(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve and leave the bias to the caller: torch adds it in a kernel of its own."""
    return convolution._conv_forward(x, convolution.weight, None)


class FusedTransformerBlock(BasicTransformerBlock):
    """Self-attention, cross-attention and feed-forward, each behind a LayerNorm, each added."""

    @staticmethod
    def fits(block: BasicTransformerBlock) -> bool:
        """Whether it is of the common kind."""
        norms = (block.norm1, block.norm2, block.norm3)
        return (
            type(block) is BasicTransformerBlock
            and block.norm_type == "layer_norm"
            and block.pos_embed is None
            and block.attn2 is not None
            and not block.only_cross_attention
            and all(type(norm) is nn.LayerNorm and norm.bias is not None for norm in norms)
        )

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        *_: object,
        **__: object,
    ) -> Tensor:
        """Map (b, n, d), attending to (b, tokens, d_text)."""
        x, h = layer_norm_of_sum(hidden_states, None, self.norm1)
        h = self.attn1(h, attention_mask=attention_mask)
        x, h = layer_norm_of_sum(x, h, self.norm2)
        h = self.attn2(h, encoder_hidden_states, attention_mask=encoder_attention_mask)
        x, h = layer_norm_of_sum(x, h, self.norm3)
        output: Tensor = x + self.ff(h)
        return output


def layer_norm_of_sum(x: Tensor, r: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """x + r, and its LayerNorm."""
    if x.is_cuda and not is_compiling():
        from gooddrag.kernels import tokens

        return tokens.layer_norm_of_sum(x, r, norm.weight, norm.bias, norm.eps)
    s = x if r is None else x + r
    return s, norm(s)


class FusedGEGLU(GEGLU):
    """A linear layer whose one half gates the other."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (..., d_in) to (..., d_out)."""
        if hidden_states.is_cuda and not is_compiling():
            from gooddrag.kernels.tokens import geglu

            return geglu(self.proj(hidden_states))
        y: Tensor = super().forward(hidden_states)
        return y


def compile_blocks(unet: UNet2DConditionModel) -> None:
    """Let torch.compile make the kernels of transformer blocks, at the first pass of each kind.

    Blocks of one size share what it makes; a UNet in one piece takes minutes for each kind of pass.
    """
    dynamo = torch._dynamo.config
    # recompile_limit by its first name, which torch 2.4 knows as well
    dynamo.cache_size_limit = max(dynamo.cache_size_limit, KINDS)
    for module in unet.modules():
        if isinstance(module, BasicTransformerBlock):
            module.compile(dynamic=False)


def compile_kernels(unet: UNet2DConditionModel) -> None:
    """Have the kernels made, or fetched from Triton's cache, now and not in the first edit."""
    if unet.device.type != "cuda":
        return
    wide = {"device": unet.device, "dtype": unet.dtype, "requires_grad": True}
    for module in unet.modules():
        if isinstance(module, FusedGroupNorm):
            # large, since a small map's kernels are made for its size, which is not known here
            x, time = torch.zeros(1, len(module.weight), 64, 64, **wide), module.bias.detach()[None]
            (module(x) + module(x, time)).sum().backward()
        elif isinstance(module, FusedTransformerBlock):
            x = torch.zeros(1, 8, len(module.norm1.weight), **wide)
            first, normed = layer_norm_of_sum(x, None, module.norm1)
            second, h = layer_norm_of_sum(first, module.ff(normed), module.norm3)
            (second + h).sum().backward()
        elif isinstance(module, FusedResnetBlock):
            from gooddrag.kernels.sums import add

            x = torch.zeros(1, len(module.conv2.bias), 8, 8, **wide)
            add(x, x, module.conv2.bias)
