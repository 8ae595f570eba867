"""DDIM without noise (eta = 0): one equation, walked both ways.

Alphas are 0-dimensional float32 tensors, as diffusers' schedulers hold them, whatever the
precision of the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

Latent = Float[Tensor, "*shape"]  # any shape: every element goes its own way
NoiseModel = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Timesteps:
    """The ladder of noise levels that a run walks.

    Attributes:
        alphas_cumprod: a_t for every training timestep, float32.
        steps: number of inference steps on the whole ladder.
        strength: the part of it that is walked; an edit starts after round(steps * strength)
            steps of inversion, Python's rounding, halves to even (pipeline.py:269).
        offset: added to every timestep (steps_offset of Stable Diffusion).
    """

    alphas_cumprod: Float[Tensor, " t"]
    steps: int
    strength: float
    offset: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= len(self.alphas_cumprod):
            raise ValueError(
                f"steps must lie between 1 and {len(self.alphas_cumprod)}, found {self.steps}"
            )
        if self.offset + (self.steps - 1) * self.stride >= len(self.alphas_cumprod):
            raise ValueError(
                f"{self.steps} steps with offset {self.offset} reach beyond the last training "
                f"timestep, {len(self.alphas_cumprod) - 1}: take fewer steps"
            )
        if not 0 < self.strength <= 1 or round(self.steps * self.strength) < 1:
            raise ValueError(
                f"strength must lie above 0 and at most at 1 and leave at least one of "
                f"{self.steps} steps, found {self.strength}"
            )

    @cached_property
    def stride(self) -> int:
        """Training timesteps between two steps."""
        return len(self.alphas_cumprod) // self.steps

    @cached_property
    def descending(self) -> list[int]:
        """t of the denoising steps, from the inverted latent to the picture."""
        count = round(self.steps * self.strength)
        return [i * self.stride + self.offset for i in reversed(range(count))]

    def alpha(self, t: int) -> Float[Tensor, ""]:
        """a_t; below the first timestep the first one's (set_alpha_to_one is off)."""
        return self.alphas_cumprod[max(t, 0)]

    def down(self, t: int) -> tuple[Tensor, Tensor]:
        """(a_t, a_{t-1}) of the denoising step at t."""
        return self.alpha(t), self.alpha(t - self.stride)


def root(a: Tensor) -> Tensor:
    """sqrt(a), correctly rounded to a's own precision.

    torch's float32 square root is off by one in the last place for a fifth of all arguments on
    some processors (seen on an AMD EPYC, exact on others), which is enough to make traces of
    two machines part; by way of float64 it is exact everywhere.
    """
    return a.double().sqrt().to(a.dtype)


def predict_z0(z: Latent, eps: Latent, a: Tensor) -> Latent:
    """z_0 = (z_t - sqrt(1 - a_t) eps) / sqrt(a_t)."""
    return (z - root(1 - a) * eps) / root(a)


def move(z: Latent, eps: Latent, a_from: Tensor, a_to: Tensor) -> Latent:
    """From one noise level to another along eps: sqrt(a_to) z_0 + sqrt(1 - a_to) eps."""
    return root(a_to) * predict_z0(z, eps, a_from) + root(1 - a_to) * eps


@torch.no_grad()
def invert(
    z_0: Latent,
    noise: NoiseModel,
    times: Timesteps,
    advance: Callable[[], object] = lambda: None,
) -> Latent:
    """DDIM inversion of z_0 to z_T.

    At each t the model is given the latent that is still one level below, with the timestep it
    is about to reach (pipeline.py:336-345,435-453).

    Args:
        z_0: the picture's latent.
        noise: eps_theta(z, t).
        times: the ladder.
        advance: called after each step.
    """
    z = z_0
    for t in reversed(times.descending):
        a_t, a_prev = times.down(t)
        z = move(z, noise(z, t), a_prev, a_t)
        advance()
    return z


@torch.no_grad()
def sample(z: Latent, noise: NoiseModel, times: Timesteps, timesteps: Sequence[int]) -> Latent:
    """Denoise z along the given timesteps, the first of which is z's own level."""
    for t in timesteps:
        z = move(z, noise(z, t), *times.down(t))
    return z
