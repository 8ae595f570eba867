"""LoRA adaptation as a Lightning fit: teach the UNet one picture, so that editing keeps it.

The loss is the diffusion loss on that picture alone, E || eps - eps_theta(a_t z_0 + s_t eps) ||^2.
What is random in it (posterior noise, eps, t) is drawn beforehand and is the DATA of the fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional

from gooddrag.backbones.stable_diffusion import StableDiffusion


@dataclass(frozen=True)
class Draw:
    """The random numbers of one training step, m per sample, sample by sample.

    Attributes:
        posterior: standard normal, for sampling z_0 from the VAE's posterior.
        eps: the noise that is added and predicted.
        t: timesteps.
    """

    posterior: Float[Tensor, "b c h w"]
    eps: Float[Tensor, "b c h w"]
    t: Int[Tensor, " b"]


def add_noise(
    z_0: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"], a: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) eps."""
    a = a[:, None, None, None]
    return a**0.5 * z_0 + (1 - a) ** 0.5 * eps


def adaptation_loss(
    predicted: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"], samples: int
) -> Float[Tensor, " samples"]:
    """E || eps - eps_theta(z_t, t) ||^2, a mean for each sample (lora_utils.py:317)."""
    return (predicted - eps).square().unflatten(0, (samples, -1)).flatten(1).mean(dim=1)


class LoraAdaptation(LightningModule):
    """The fit of n adapters to n pictures, each learning as if it were alone.

    Batches are `Draw`s. The adapters' matrices live in the backbone; the module optimises them but
    does not own them, so that Lightning leaves them where they are.

    Args:
        backbone: with the adapters installed.
        weights: all of their matrices, `AdapterBank.flat`.
        mean, std: posterior of the training crops' latents, m per sample; one set for all
            steps or one for each.
        text: prompt embeddings, one per sample.
        lr, betas, weight_decay: of AdamW.
    """

    def __init__(
        self,
        *,
        backbone: StableDiffusion,
        weights: nn.Parameter,
        mean: Float[Tensor, "sets b c h w"],
        std: Float[Tensor, "sets b c h w"],
        text: Float[Tensor, "n tokens d"],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        super().__init__()
        self.phase = "adapt"
        # the backbone is no nn.Module: a registered UNet would go to the CPU after the fit
        self.backbone, self.weights, self.text = backbone, [weights], text
        self.mean, self.std = mean, std
        self.alphas = backbone.alphas_cumprod.to(mean.device)
        self.lr, self.betas, self.weight_decay = lr, betas, weight_decay

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the LoRA weights (lora_utils.py:221-232)."""
        return torch.optim.AdamW(
            self.weights,
            lr=self.lr,
            betas=self.betas,
            weight_decay=self.weight_decay,
            fused=True,
        )

    def training_step(self, draw: Draw, index: int) -> Tensor:
        """One step of the diffusion loss; samples add up, so that none sees another's gradient."""
        crops = index % len(self.mean)
        z_0 = self.mean[crops] + self.std[crops] * draw.posterior
        z_t = add_noise(z_0, draw.eps, self.alphas[draw.t])
        predicted = self.backbone.noise(z_t, draw.t, self.text)
        return adaptation_loss(predicted, draw.eps, len(self.text)).sum()

    def transfer_batch_to_device(self, batch: Draw, device: torch.device, index: int) -> Draw:
        """Move the numbers to where the backbone is, in its latents' precision."""
        dtype = self.mean.dtype
        return Draw(
            staged(batch.posterior.to(dtype), self.mean.device),
            staged(batch.eps.to(dtype), self.mean.device),
            staged(batch.t, self.mean.device),
        )


def staged(x: Tensor, device: torch.device) -> Tensor:
    """Send a tensor without waiting for the device, which needs pinned memory."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


class Draws(Iterable[Draw]):
    """The random numbers of a whole fit, a generator for each sample.

    Drawn in the official order: posterior noise, noise, timesteps (lora_utils.py:292-317).
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        steps: int,
        batch_size: int,
        shape: Sequence[int],
        timesteps: int = 1000,
    ) -> None:
        self.generators, self.steps, self.timesteps = generators, steps, timesteps
        self.shape = (batch_size, *shape)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Draw]:
        for _ in range(self.steps):
            posterior, eps, t = zip(
                *(
                    (
                        torch.randn(self.shape, generator=g),
                        torch.randn(self.shape, generator=g),
                        torch.randint(self.timesteps, self.shape[:1], generator=g),
                    )
                    for g in self.generators
                ),
                strict=True,
            )
            yield Draw(torch.cat(posterior), torch.cat(eps), torch.cat(t))


def training_picture(
    image: Float[Tensor, "3 h w"], side: int, crop: str
) -> Float[Tensor, "3 rh rw"]:
    """What is cropped: the shorter side resized to `side`, or both (lora_utils.py:255-262)."""
    height, width = image.shape[1:]
    scale = side / min(height, width)
    size = (side, side) if crop == "none" else (round(height * scale), round(width * scale))
    resized: Tensor = functional.interpolate(
        image[None], size, mode="bilinear", antialias=True, align_corners=False
    )[0]
    return resized


def random_corner(size: Sequence[int], side: int, generator: torch.Generator) -> tuple[int, int]:
    """(top, left) of a random square of a picture of size (height, width)."""
    top, left = (int(torch.randint(extent - side + 1, (), generator=generator)) for extent in size)
    return top, left
