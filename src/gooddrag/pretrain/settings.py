"""What the training is told: plain records without defaults, whose numbers live in conf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel


class World(Protocol):
    """A place to draw captioned pictures from; the module `gooddrag.world` is one."""

    FAMILIES: Sequence[str]

    def caption(self, family: str, /) -> str:
        """Gives the short English phrase of a family."""
        ...

    def render_pictures(
        self,
        split: str,
        seed: int,
        indices: Sequence[int],
        size: int = ...,
        device: str | torch.device = ...,
    ) -> tuple[Tensor, Tensor]:
        """Renders pictures [B, 3, size, size] in [0, 1] and their family numbers [B]."""
        ...


@dataclass(frozen=True, kw_only=True)
class ModelFactories:
    """Makers of the four parts: called after seeding, so that the first weights are known."""

    vae: Callable[[], AutoencoderKL]
    unet: Callable[[], UNet2DConditionModel]
    text_encoder: Callable[[], CLIPTextModel]
    scheduler: Callable[[], DDIMScheduler]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Which pictures are trained on, and how they are rendered."""

    count: int
    chunk: int
    seed: int
    max_render_minutes: float | None


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """AdamW with warm-up, a constant stretch and a decay to zero, and an average of the weights."""

    batch_size: int
    max_steps: int
    lr: float
    betas: Sequence[float]
    weight_decay: float
    warmup_steps: int
    decay_start: int
    decay_shape: str
    clip_norm: float
    ema_decay: float

    def __post_init__(self) -> None:
        if self.decay_shape not in ("linear", "cosine"):
            raise ValueError(
                f"decay_shape is {self.decay_shape!r}: give 'linear' or 'cosine' instead"
            )
        if not 0 <= self.decay_start < self.max_steps:
            raise ValueError(
                f"decay_start is {self.decay_start} but max_steps is {self.max_steps}: "
                "the decay has to start before the last step"
            )


@dataclass(frozen=True, kw_only=True)
class VaeSettings:
    """The autoencoder's stage; the four weights are those of its loss."""

    pictures: Pictures
    optimisation: Optimisation
    l1_weight: float
    gradient_weight: float
    mse_weight: float
    kl_weight: float
    grid_pictures: int
    score_pictures: int
    statistics_pictures: int


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    """What the stages share that teach the UNet to predict noise."""

    pictures: Pictures
    optimisation: Optimisation
    empty_prompt_fraction: float
    score_pictures: int
    score_timesteps: Sequence[int]
    grid_columns: int
    grid_steps: int
    grid_guidance: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class UnetSettings(NoiseSettings):
    """The UNet's and text encoder's stage."""

    text_encoder_lr_factor: float
    min_snr: float


@dataclass(frozen=True, kw_only=True)
class CaptionSettings(NoiseSettings):
    """The captions' stage, which leaves the empty prompt alone."""

    embedding_std: float
    protected_directions: int
    high_noise_from: int
    high_noise_fraction: float


@dataclass(frozen=True, kw_only=True)
class Logistics:
    """How a run is watched, saved and stopped."""

    log_every_steps: int
    print_every_seconds: float
    checkpoint_minutes: float
    score_chunk: int
    max_shard_size: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and how fast a run computes; `picture_size` in pixels."""

    device: str
    precision: str
    compile: bool
    compile_mode: str
    picture_size: int

    def torch_device(self) -> torch.device:
        """Resolves 'auto' to the first CUDA device, or else to the CPU."""
        if self.device == "auto":
            return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        device = torch.device(self.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is {self.device!r} but no CUDA device is here: use 'cpu'")
        return torch.device("cuda:0") if self.device == "cuda" else device

    def compiles(self) -> bool:
        """Compilation pays on CUDA only."""
        return self.compile and self.torch_device().type == "cuda"


Report = dict[str, Any]
