"""The training of the embedded model's UNet and text encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from gooddrag.pretrain.averaged import AveragedTraining
from gooddrag.pretrain.data import LatentSet
from gooddrag.pretrain.settings import NoiseSettings, UnetSettings


class NoiseTraining(AveragedTraining, ABC):
    """Trains UNet and text encoder together: eps-prediction.

    Attributes:
        latents: Posteriors of the training pictures, on the device.
    """

    model: nn.ModuleDict
    ema: nn.ModuleDict
    tokens: Tensor
    alphas_cumprod: Tensor

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokens: Tensor,
        alphas_cumprod: Tensor,
        scaling_factor: float,
        vae_key: str,
        settings: NoiseSettings,
        seed: int,
    ) -> None:
        """Takes the parts; the last row of `tokens` [families + 1, 77] is the empty prompt."""
        model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
        super().__init__(model=model, optimisation=settings.optimisation, seed=seed)
        self.settings = settings
        self.scaling_factor = scaling_factor
        self.vae_key = vae_key
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)
        self.latents: LatentSet | None = None

    def compiled_parts(self) -> list[nn.Module]:
        """Gives the UNet alone: the text encoder sees a handful of captions per step."""
        return [self.model["unet"]]

    def training_step(self, batch: int, batch_idx: int) -> dict[str, Tensor]:
        """Predicts the noise of a random batch of noised latents."""
        assert self.latents is not None, "set `latents` before fitting"
        generator, size = self.generator(), (self.optimisation.batch_size,)
        rows = torch.randint(
            len(self.latents.families), size, generator=generator, device=self.device
        )
        mean, std = self.latents.mean[rows].float(), self.latents.std[rows].float()
        draw = torch.randn((2, *mean.shape), generator=generator, device=self.device)
        z_0, eps = self.scaling_factor * (mean + std * draw[0]), draw[1]
        t = self.draw_timesteps(generator)
        empty = torch.rand(size, generator=generator, device=self.device)
        captions = self.latents.families[rows].masked_fill(
            empty < self.settings.empty_prompt_fraction, len(self.tokens) - 1
        )
        losses = self.losses(self.model, z_0, eps, t, captions)
        return {"loss": (self.weights(t) * losses).mean(), "mse": losses.mean().detach()}

    def draw_timesteps(self, generator: torch.Generator) -> Tensor:
        """Draws this step's noise levels, [B]."""
        return torch.randint(
            len(self.alphas_cumprod),
            (self.optimisation.batch_size,),
            generator=generator,
            device=self.device,
        )

    @abstractmethod
    def weights(self, t: Tensor) -> Tensor:
        """Weighs the noise levels' eps-losses, [B]."""

    def losses(
        self, model: nn.ModuleDict, z_0: Tensor, eps: Tensor, t: Tensor, captions: Tensor
    ) -> Tensor:
        """||eps - eps_theta(sqrt(a_t) z_0 + sqrt(1 - a_t) eps, t, c)||^2 per sample, [B].

        The text encoder reads each distinct caption once; its states are then gathered.
        """
        states = model["text_encoder"](self.tokens)[0].float()[captions]
        alpha = self.alphas_cumprod[t][:, None, None, None]
        z_t = alpha.sqrt() * z_0 + (1 - alpha).sqrt() * eps
        z_t = z_t.contiguous(memory_format=torch.channels_last)
        prediction = model["unet"](z_t, t, states, return_dict=False)[0]
        return (prediction.float() - eps).square().mean(dim=(1, 2, 3))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes which autoencoder the latents are of."""
        checkpoint["vae_key"] = self.vae_key

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to go on with another autoencoder.

        Raises:
            ValueError: The checkpoint was trained on another autoencoder's latents.
        """
        if checkpoint["vae_key"] != self.vae_key:
            raise ValueError(
                "the UNet's checkpoint belongs to another autoencoder than the one in vae/model: "
                "restore that one, or start the UNet anew in another output folder"
            )


class UnetTraining(NoiseTraining):
    """Trains all weights of both, with min-SNR weights of the losses."""

    settings: UnetSettings

    def weight_groups(self) -> list[dict[str, Any]]:
        """Trains the text encoder slower and without weight decay.

        Captions tell little about the noise but at the highest levels, so that the text encoder
        sees hardly any gradient but the one that all captions share. At the UNet's own rate Adam
        follows that one until the states of all captions are the same.
        """
        slow = self.settings.text_encoder_lr_factor
        return [
            {"params": list(self.model["unet"].parameters()), "lr_factor": 1.0},
            {
                "params": list(self.model["text_encoder"].parameters()),
                "lr_factor": slow,
                "weight_decay": 0.0,
            },
        ]

    def weights(self, t: Tensor) -> Tensor:
        """min-SNR weights of the eps-loss, [B]."""
        alpha = self.alphas_cumprod[t]
        snr = alpha / (1 - alpha)
        return snr.clamp(max=self.settings.min_snr) / snr
