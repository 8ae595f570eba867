"""The LightningModules that train the embedded model."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss
from transformers import CLIPTextModel

from gooddrag.pretrain.data import LatentSet, to_model_range
from gooddrag.pretrain.parts import decode, encode_moments
from gooddrag.pretrain.settings import CaptionSettings, Optimisation, UnetSettings, VaeSettings

CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")


class Endless:
    """Data without end or content: the modules draw their own batches on the device."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


class AveragedTraining(LightningModule):
    """Trains `model` and keeps `ema`, the exponential average of its weights, which is shipped.

    Everything random comes from `generator()`, which depends on (seed, step) alone, and the
    learning rate on the step alone: a resumed run therefore does exactly what an uninterrupted
    one does, and a resumed schedule may be lengthened by its config.
    """

    def __init__(self, *, model: nn.Module, optimisation: Optimisation, seed: int) -> None:
        super().__init__()
        self.model = model.train()
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.optimisation = optimisation
        self.seed = seed
        # Steps of the schedule per step made: below or above 1 when it is fitted to a time.
        self.stretch = 1.0
        self.compile_mode: str | None = None

    def on_train_batch_start(self, batch: int, batch_idx: int) -> None:
        """Lets go of the last step's gradients where they lie in a CUDA graph's memory."""
        if self.compile_mode in CUDA_GRAPH_MODES:
            self.zero_grad(set_to_none=True)
            torch.compiler.cudagraph_mark_step_begin()

    def generator(self) -> torch.Generator:
        """Gives the randomness of this step."""
        generator = torch.Generator(self.device)
        return generator.manual_seed(self.seed * 1_000_003 + self.global_step)

    def learning_rate(self, step: int) -> float:
        """Warm-up, constant, then linear or cosine decay to 0 at `max_steps`."""
        o = self.optimisation
        warm = min(1.0, (step + 1) / max(1, o.warmup_steps))
        place = (step * self.stretch - o.decay_start) / (o.max_steps - o.decay_start)
        place = min(1.0, max(0.0, place))
        decay = 1 - place if o.decay_shape == "linear" else (1 + math.cos(math.pi * place)) / 2
        return o.lr * warm * decay

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Gives a fused AdamW."""
        o = self.optimisation
        return torch.optim.AdamW(
            self.weight_groups(),
            lr=o.lr,
            betas=(o.betas[0], o.betas[1]),
            weight_decay=o.weight_decay,
            fused=True,
        )

    def weight_groups(self) -> list[dict[str, Any]]:
        """Groups the trained weights; `lr_factor` of a group scales its learning rate."""
        return [{"params": list(self.model.parameters()), "lr_factor": 1.0}]

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clips by hand: Lightning refuses to clip for a fused optimiser under mixed precision."""
        nn.utils.clip_grad_norm_(self.model.parameters(), self.optimisation.clip_norm)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Steps and averages in one place, before any callback can write a checkpoint."""
        step = self.global_step
        for group in optimizer.param_groups:
            group["lr"] = group["lr_factor"] * self.learning_rate(step)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.constrain()
        self.average(step)

    def constrain(self) -> None:
        """Puts the weights back where they may be, after each step; here they may be anywhere."""

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Averages: ema <- d ema + (1 - d) model, d growing to `ema_decay`; buffers are copied."""
        decay = min(self.optimisation.ema_decay, (1 + step) / (10 + step))
        ema: list[Tensor] = list(self.ema.parameters())
        model: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(ema, model, 1 - decay)
        for kept, new in zip(self.ema.buffers(), self.model.buffers(), strict=True):
            kept.copy_(new)

    def compile_model(self, mode: str) -> None:
        """Compiles in place (`Module.compile`), which leaves the names of the weights alone.

        Args:
            mode: torch.compile's own word; each part is compiled for one shape.
        """
        self.compile_mode = mode
        for part in self.compiled_parts():
            part.compile(dynamic=False, mode=mode)

    def compiled_parts(self) -> list[nn.Module]:
        """Lists what is worth compiling: the whole model, unless a subclass knows better."""
        return [self.model]


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


class UnetTraining(AveragedTraining):
    """Trains UNet and text encoder together: eps-prediction with min-SNR weights.

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
        settings: UnetSettings,
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

    def weights(self, t: Tensor) -> Tensor:
        """min-SNR weights of the eps-loss, [B]."""
        alpha = self.alphas_cumprod[t]
        snr = alpha / (1 - alpha)
        return snr.clamp(max=self.settings.min_snr) / snr

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


class CaptionTraining(UnetTraining):
    """Teaches a trained UNet its captions and leaves the empty prompt as it is, by construction.

    Trained are the embeddings of the tokens that the empty prompt does not have, drawn anew, and
    the cross-attention's to_k and to_v, whose changes are kept orthogonal to the main directions of
    the empty prompt's states: what the UNet makes of the empty prompt cannot move but by what
    these states have outside of those directions.
    """

    directions: Tensor
    fixed_tokens: Tensor
    fixed_embeddings: Tensor

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokens: Tensor,
        alphas_cumprod: Tensor,
        scaling_factor: float,
        vae_key: str,
        settings: CaptionSettings,
        seed: int,
    ) -> None:
        """Redraws the embeddings and freezes all else; see `UnetTraining`."""
        text_encoder.requires_grad_(False)
        unet.requires_grad_(False)
        empty = tokens[-1].unique()
        with torch.no_grad():
            states = text_encoder.eval()(tokens[-1:])[0][0]
            directions = torch.linalg.svd(states.double())[2][: settings.protected_directions]
            embeddings = text_encoder.get_input_embeddings().weight
            kept = embeddings[empty].clone()
            embeddings.normal_(std=settings.embedding_std)
            embeddings[empty] = kept
        super().__init__(
            unet=unet,
            text_encoder=text_encoder,
            tokens=tokens,
            alphas_cumprod=alphas_cumprod,
            scaling_factor=scaling_factor,
            vae_key=vae_key,
            settings=settings,
            seed=seed,
        )
        self.settings: CaptionSettings = settings
        self.register_buffer("directions", directions.float(), persistent=False)
        self.register_buffer("fixed_tokens", empty, persistent=False)
        self.register_buffer("fixed_embeddings", kept, persistent=False)
        self.maps = [
            weight.requires_grad_()
            for name, weight in self.model["unet"].named_parameters()
            if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
        ]
        self.embeddings().requires_grad_()
        # What the maps make of the protected directions, and go on making of them.
        for number, weight in enumerate(self.maps):
            kept = weight.detach() @ self.directions.T
            self.register_buffer(f"kept_{number}", kept, persistent=False)

    def embeddings(self) -> nn.Parameter:
        """Gives the token embeddings, [tokens, hidden]."""
        text_encoder: Any = self.model["text_encoder"]
        weight: nn.Parameter = text_encoder.get_input_embeddings().weight
        return weight

    def weight_groups(self) -> list[dict[str, Any]]:
        """Gives the embeddings and the maps of the captions' states."""
        return [{"params": [self.embeddings(), *self.maps], "lr_factor": 1.0}]

    @torch.no_grad()
    def constrain(self) -> None:
        """Takes the changes along the protected directions back."""
        for number, weight in enumerate(self.maps):
            moved = weight @ self.directions.T - self.get_buffer(f"kept_{number}")
            weight -= moved @ self.directions
        self.embeddings()[self.fixed_tokens] = self.fixed_embeddings

    def draw_timesteps(self, generator: torch.Generator) -> Tensor:
        """Draws most noise levels from `high_noise_from` on, where captions tell something."""
        t = super().draw_timesteps(generator)
        s, count = self.settings, len(self.alphas_cumprod)
        high = torch.rand(t.shape, generator=generator, device=self.device) < s.high_noise_fraction
        start = s.high_noise_from
        return torch.where(high, start + t * (count - start) // count, t)

    def weights(self, t: Tensor) -> Tensor:
        """1 / a_t: errors of v instead of those of eps, which vanish at high noise, [B]."""
        return 1 / self.alphas_cumprod[t]
