"""The training of the embedded model's autoencoder."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from gooddrag.pretrain.averaged import AveragedTraining
from gooddrag.pretrain.data import to_model_range
from gooddrag.pretrain.parts import decode, encode_moments
from gooddrag.pretrain.settings import VaeSettings


class VaeTraining(AveragedTraining):
    """Trains the autoencoder: L1 + L1 of image gradients + MSE + KL.

    Attributes:
        pictures: Training pictures, uint8 [N, 3, H, W], on the device.
    """

    model: AutoencoderKL
    ema: AutoencoderKL

    def __init__(self, *, vae: AutoencoderKL, settings: VaeSettings, seed: int) -> None:
        super().__init__(model=vae, optimisation=settings.optimisation, seed=seed)
        self.settings = settings
        self.pictures = torch.empty(0, dtype=torch.uint8)

    def compiled_parts(self) -> list[nn.Module]:
        """Gives encoder and decoder."""
        return [self.model.encoder, self.model.decoder]

    def training_step(self, batch: int, batch_idx: int) -> dict[str, Tensor]:
        """Reconstructs a random batch through a sampled latent."""
        generator = self.generator()
        rows = torch.randint(
            len(self.pictures),
            (self.optimisation.batch_size,),
            generator=generator,
            device=self.device,
        )
        x = to_model_range(self.pictures[rows])
        mean, logvar = encode_moments(self.model, x)
        noise = torch.randn(mean.shape, generator=generator, device=self.device)
        y = decode(self.model, mean + (0.5 * logvar).exp() * noise)
        mse = mse_loss(y, x)
        loss = self.reconstruction_loss(y, x, mse) + self.settings.kl_weight * kl(mean, logvar)
        # In units of [0, 1]^2, from which the progress line makes a PSNR.
        return {"loss": loss, "mse": mse.detach() / 4}

    def reconstruction_loss(self, y: Tensor, x: Tensor, mse: Tensor) -> Tensor:
        """L1 of pictures and of their finite differences, and MSE."""
        s = self.settings
        edges = sum(l1_loss(y.diff(dim=dim), x.diff(dim=dim)) for dim in (-2, -1))
        return s.l1_weight * l1_loss(y, x) + s.gradient_weight * edges + s.mse_weight * mse


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(q(z|x) || N(0, 1)), averaged over all elements.

    >>> kl(torch.zeros(2), torch.zeros(2)).item()
    0.0
    """
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
