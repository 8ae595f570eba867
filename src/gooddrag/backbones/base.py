"""What a method needs of a diffusion model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Adapter = dict[str, Tensor]
"""LoRA weights of one picture: "<module>.lora_A.weight" (rank, in) and "...lora_B.weight"
(out, rank), scaled so that their product is added as it is."""


@runtime_checkable
class Backbone(Protocol):
    """A latent diffusion model with frozen weights.

    Batches are laid out sample by sample: with adapters of n samples, a batch of n * m latents
    holds m consecutive ones of each.
    """

    device: torch.device
    dtype: torch.dtype
    latent_dtype: torch.dtype
    alphas_cumprod: Float[Tensor, " t"]
    pixels_per_latent: int
    resolution: int
    low_memory: bool

    def encode(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b c lh lw"], Float[Tensor, "b c lh lw"]]:
        """Mean and standard deviation of the latents' posterior, scaled; images in [0, 1]."""
        ...

    def decode(self, z: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [0, 1] from latents."""
        ...

    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "b tokens d"]:
        """Text embeddings of prompts."""
        ...

    def save_memory(self) -> None:
        """Trade time for memory from now on."""
        ...

    def noise(
        self, z: Float[Tensor, "b c lh lw"], t: int | Tensor, text: Tensor
    ) -> Float[Tensor, "b c lh lw"]:
        """eps_theta(z_t, t), in z's precision."""
        ...

    def noise_and_features(
        self, z: Float[Tensor, "b c lh lw"], t: int, text: Tensor
    ) -> tuple[Float[Tensor, "b c lh lw"], Float[Tensor, "b f fh fw"]]:
        """eps_theta(z_t, t) and the feature block's output from the same forward."""
        ...

    def mutual_attention(
        self, samples: Bool[Tensor, " n"], start_layer: int
    ) -> AbstractContextManager[None]:
        """While active, edited latents attend to unedited ones' keys and values.

        Batches then hold (unedited, edited) pairs; it concerns the chosen samples' edited latents
        and the layers from `start_layer` on.
        """
        ...

    def replayed(
        self,
        name: Hashable,
        function: Callable[..., tuple[Tensor, ...]],
        inputs: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """function(*inputs), of tensors alone, which `name` tells from others.

        A device may record it once and replay it: its backward has to come before the next call.
        """
        ...

    def adapted(
        self, adapters: Sequence[Adapter] | None, trainable: bool = False
    ) -> AbstractContextManager[dict[str, Tensor]]:
        """While active, sample i's latents pass through adapter i; yields the stacked weights."""
        ...
