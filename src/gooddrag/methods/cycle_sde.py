"""A random walk up the noise levels, and the very noise that leads back down.

What SDE-Drag (arXiv 2311.01410) walks on; the sources are those of methods/sde_drag.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from gooddrag.ddim import predict_z0, root

Latent = Float[Tensor, "b c h w"]


@dataclass(frozen=True)
class Levels:
    """The noise levels of the walk up and down.

    Noising leaves level k for `t[k] + stride`, denoising leaves `t[k + 1]` for
    `t[k + 1] - stride`; where rounding makes t uneven the two differ a little, and the latent that
    is noised counts as level t[0], not 0 (cycle_sde.py:131,166; bench:81-99). What was not touched
    comes back all the same.

    Attributes:
        alphas_cumprod: a_t for every training timestep, float32.
        steps: on the whole ladder.
        strength: the part of it that is walked.
    """

    alphas_cumprod: Float[Tensor, " t"]
    steps: int
    strength: float

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= len(self.alphas_cumprod) // 2:
            raise ValueError(
                f"method.steps must lie between 1 and {len(self.alphas_cumprod) // 2}, "
                f"found {self.steps}"
            )
        if not 2 <= self.count < self.steps:
            raise ValueError(
                f"method.strength must leave at least 2 of {self.steps} steps and not be 1, "
                f"found {self.strength}"
            )

    @property
    def count(self) -> int:
        """Steps up, and steps down: int(strength * steps) (utils/drag.py:51-69)."""
        return int(self.strength * self.steps)

    @property
    def stride(self) -> int:
        """Training timesteps between two levels (cycle_sde.py:131)."""
        return len(self.alphas_cumprod) // self.steps

    @property
    def t(self) -> list[int]:
        """Ascending timesteps, evenly spaced and rounded ("linspace" of diffusers)."""
        last = len(self.alphas_cumprod) - 1
        return [round(i * last / self.steps) for i in range(1, self.count + 2)]

    def up(self, k: int) -> tuple[Tensor, Tensor]:
        """(a_t, a_{t+s}) of the k-th noising step."""
        return self.alphas_cumprod[self.t[k]], self.alphas_cumprod[self.t[k] + self.stride]

    def down(self, k: int) -> tuple[Tensor, Tensor]:
        """(a_t, a_{t-s}) of the denoising step that undoes the k-th noising step."""
        t = self.t[k + 1]
        return self.alphas_cumprod[t], self.alphas_cumprod[t - self.stride]


def perturb(x: Latent, noise: Latent, a_from: Tensor, a_to: Tensor) -> Latent:
    """x_{t+s} = sqrt(a_{t+s} / a_t) x_t + sqrt(1 - a_{t+s} / a_t) noise (cycle_sde.py:165-174)."""
    ratio = a_to / a_from
    return root(ratio) * x + root(1 - ratio) * noise


def sigma(a_from: Tensor, a_to: Tensor) -> Tensor:
    """The deviation of a random DDIM step, eta = 1 (cycle_sde.py:131-163)."""
    return root((1 - a_to) / (1 - a_from)) * root(1 - a_from / a_to)


def step_mean(x: Latent, eps: Latent, a_from: Tensor, a_to: Tensor) -> Latent:
    """m(x_t, eps) = sqrt(a_{t-s}) z_0(x_t, eps) + sqrt(1 - a_{t-s} - sigma^2) eps."""
    towards = root(1 - a_to - sigma(a_from, a_to) ** 2)
    return root(a_to) * predict_z0(x, eps, a_from) + towards * eps


def step_noise(x: Latent, eps: Latent, x_prev: Latent, a_from: Tensor, a_to: Tensor) -> Latent:
    """w = (x_{t-s} - m(x_t, eps)) / sigma: the noise that leads from x_t to a known x_{t-s}."""
    return (x_prev - step_mean(x, eps, a_from, a_to)) / sigma(a_from, a_to)
