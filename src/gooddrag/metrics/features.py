"""DIFT: what a diffusion model sees in a picture, as features to find points by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from gooddrag import seeding
from gooddrag.backbones.base import Backbone

Featurizer = Callable[[Tensor, str, str], Tensor]
"""From a picture (3, h, w), a prompt and a name that seeds noise to features (c, fh, fw)."""

POSTERIORS = ("mean", "sample")


@dataclass(frozen=True, kw_only=True)
class Dift:
    """Features of a noised picture, averaged over draws of the noise (arXiv 2306.03881).

    Attributes:
        backbone: its feature block gives the features.
        t: the timestep up to which noise is added.
        ensemble: draws of the noise.
        side: the picture is resized to side x side by repeating pixels; None leaves its size.
        posterior: of the latent, "mean" or "sample".
        prompted: with the sample's prompt, or with the empty one.
        seed: of the draws; they also depend on the name.

    Raises:
        ValueError: a setting out of range.
    """

    backbone: Backbone
    t: int
    ensemble: int
    side: int | None
    posterior: str
    prompted: bool
    seed: int

    def __post_init__(self) -> None:
        if self.posterior not in POSTERIORS:
            raise ValueError(f"posterior must be mean or sample, found {self.posterior!r}")
        if not 0 <= self.t < len(self.backbone.alphas_cumprod) or self.ensemble < 1:
            raise ValueError(
                f"t must lie between 0 and {len(self.backbone.alphas_cumprod) - 1} and ensemble be "
                f"positive, found {self.t} and {self.ensemble}"
            )

    @torch.no_grad()
    def __call__(
        self, image: Float[Tensor, "3 h w"], prompt: str, name: str
    ) -> Float[Tensor, "c fh fw"]:
        """The features of one picture.

        Args:
            image: RGB in [0, 1].
            prompt: the sample's.
            name: pictures of one name see the same noise.
        """
        if self.side is not None:
            image = functional.interpolate(image[None], (self.side, self.side))[0]
        generator = seeding.generator(self.seed, "dift", name)
        mean, std = self.backbone.encode(image[None])
        shape = (self.ensemble, *mean.shape[1:])
        draws = torch.randn(2, *shape, generator=generator).to(mean)
        z_0 = mean + std * draws[0] if self.posterior == "sample" else mean
        a = self.backbone.alphas_cumprod[self.t].to(mean)
        z_t = a.sqrt() * z_0 + (1 - a).sqrt() * draws[1]
        text = self.backbone.embed([prompt if self.prompted else ""])
        return self.backbone.noise_and_features(z_t, self.t, text)[1].mean(dim=0)
