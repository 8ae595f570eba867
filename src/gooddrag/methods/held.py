"""Latents that follow a picture: how likely a picture is, and denoising that is held to one.

Noise and denoise is SDEdit's (arXiv 2108.01073); a latent that follows the noisy source outside a
mask is Blended Latent Diffusion's (arXiv 2206.02779), here inside it as well, for a while. How
likely a picture is comes from the diffusion loss, as in diffusion classifiers (arXiv 2303.16203).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from gooddrag.backbones.base import Backbone
from gooddrag.ddim import Timesteps, move
from gooddrag.denoising import PairedDenoising

Latent = Float[Tensor, "b c h w"]
Mask = Float[Tensor, "b 1 h w"]
_NOTHING = 1e-6  # so that nothing beside nothing is 1


def noised(z_0: Latent, eps: Latent, a: Float[Tensor, ""]) -> Latent:
    """z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) eps: a move from no noise at all."""
    return move(z_0, eps, torch.ones_like(a), a)


@torch.no_grad()
def surprise(
    backbone: Backbone,
    z_0: Float[Tensor, "b k c h w"],
    eps: Float[Tensor, "b t c h w"],
    text: Float[Tensor, "b tokens d"],
    times: Timesteps,
    judged_at: Sequence[int],
) -> Float[Tensor, "b k h w"]:
    """How badly the model tells the noise from each of k pictures, in each cell.

    The diffusion loss, with the same noise for all k: it is the lower the likelier a picture is.

    Args:
        backbone: the model.
        z_0: the pictures' latents.
        eps: a noise for each timestep, so that chance has less of a say.
        text: embeddings of the prompts.
        times, judged_at: the timesteps.
    """
    flat = z_0.flatten(0, 1)
    total = torch.zeros_like(flat)
    for t, one in zip(judged_at, eps.unbind(1), strict=True):
        noise = one.repeat_interleave(z_0.shape[1], dim=0)
        z_t = noised(flat, noise, times.alpha(t))
        total = total + (backbone.noise(z_t, t, text) - noise).square()
    return total.view_as(z_0).sum(dim=2)


def beside_first(
    losses: Float[Tensor, "b k h w"], weight: Float[Tensor, "b _ h w"]
) -> Float[Tensor, "b _"]:
    """The loss of all pictures but the first, as a multiple of the first's; 1 if nothing weighs.

    Args:
        losses: of the pictures, in each cell.
        weight: of each cell, for all of them or for each of the k - 1.
    """
    now, before = ((x * weight).flatten(2).sum(dim=2) for x in (losses[:, 1:], losses[:, :1]))
    return (now + _NOTHING) / (before + _NOTHING)


@dataclass(frozen=True)
class HeldDenoising(PairedDenoising):
    """Denoising in which some cells follow a picture's noisy latent, whatever the model says.

    Attributes:
        source, warped: z_0 of the picture, and of its warp.
        eps: the noise of both.
        mask: 1 where latents may change; elsewhere they follow the source.
        until: part of the denoising through which each cell follows the warp.
        likely: whose warps the model finds likely.
    """

    source: Latent
    warped: Latent
    eps: Latent
    mask: Mask
    until: Mask
    likely: Bool[Tensor, " b"]

    def held(self, z: Latent, step: int) -> Latent:
        """z with the cells that are not free yet put where they have to be."""
        follows = step / len(self.times.descending) < self.until
        z = torch.where(follows, self.noisy(self.warped, step), z)
        return torch.where(self.mask > 0, z, self.noisy(self.source, step))

    def noisy(self, z_0: Latent, step: int) -> Latent:
        """A picture at the level that a step begins with."""
        return noised(z_0, self.eps, self.times.alpha(self.times.descending[step]))

    def step(
        self, unedited: Latent, edited: Latent, step: int, last_dragged: list[int]
    ) -> tuple[Latent, Latent, Latent]:
        """One step of the noisy source and what is left free of the edited latent."""
        source = self.noisy(self.source, step)
        return super().step(source, self.held(edited, step), step, last_dragged)


def soft_inside(mask: Float[Tensor, "b 1 h w"], edge: int) -> Float[Tensor, "b 1 h w"]:
    """0 outside the mask, rising to 1 over `edge` pixels inside it; the border counts as inside."""
    width, binary = edge // 2, (mask > 0).float()

    def pooled(pool: Callable[..., Tensor], x: Tensor) -> Tensor:
        return pool(functional.pad(x, (width,) * 4, mode="replicate"), 2 * width + 1, 1)

    return pooled(functional.avg_pool2d, 1 - pooled(functional.max_pool2d, 1 - binary))
