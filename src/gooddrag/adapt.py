"""LoRA adaptation: teach the UNet one picture, so that editing keeps it.

The loss is the diffusion loss on that picture alone, E || eps - eps_theta(a_t z_0 + s_t eps) ||^2.
What is random in it (posterior noise, eps, t) is drawn beforehand and is the DATA of the fit.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional

from gooddrag.backbones.adapter_files import ADAPTER_FILE, load_adapter, save_adapter
from gooddrag.backbones.adapters import initial_adapter, unstack
from gooddrag.backbones.base import Adapter
from gooddrag.backbones.stable_diffusion import StableDiffusion
from gooddrag.events import Phases
from gooddrag.fitting import quiet_trainer
from gooddrag.seeding import generator
from gooddrag.types import DragSample

CACHE_FORMAT = 1  # raise when the meaning of a cached adapter changes


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


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """How one picture is adapted to; part of the cache's key.

    Attributes:
        rank: of the LoRA matrices; the scale is 1 (no alpha).
        steps: optimiser steps.
        batch_size: crops a step.
        lr, betas, weight_decay: of AdamW.
        targets: names of the projections that are adapted.
        crop: "once" draws the crops before training (lora_utils.py:264-272), "each_step" anew,
            "none" squeezes the whole picture into the square.
        posterior: "sample" draws z_0 from the VAE's posterior each step, "mean" takes its mean.
        seed: of the initial weights and the noise.
    """

    rank: int
    steps: int
    batch_size: int
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    targets: tuple[str, ...]
    crop: str
    posterior: str
    seed: int

    def __post_init__(self) -> None:
        options = {"crop": ("once", "each_step", "none"), "posterior": ("sample", "mean")}
        for name, choices in options.items():
            found = getattr(self, name)
            if found not in choices:
                raise ValueError(
                    f"adapt.{name} must be one of {', '.join(choices)}, found {found!r}"
                )
        for name in ("rank", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"adapt.{name} must be at least 1, found {getattr(self, name)}")


class LoraAdapter:
    """Trains one adapter per picture, or finds it in the cache.

    Args:
        cache: folder of trained adapters, None for no cache.
        settings: see `LoraSettings`.

    Raises:
        ValueError: settings that make no sense.
    """

    def __init__(self, *, cache: str | None, **settings: object) -> None:
        for name in ("betas", "targets"):
            settings[name] = tuple(settings[name])  # type: ignore[arg-type]
        self.settings = LoraSettings(**settings)  # type: ignore[arg-type]
        self.cache = Path(os.path.expanduser(cache)) if cache else None

    def __call__(
        self, backbone: StableDiffusion, samples: Sequence[DragSample], phases: Phases
    ) -> list[Adapter]:
        """One adapter for each sample, in order."""
        folders = [self.folder(backbone, sample) for sample in samples]
        adapters: dict[int, Adapter] = {
            i: load_adapter(folder)
            for i, folder in enumerate(folders)
            if folder and (folder / ADAPTER_FILE).is_file()
        }
        missing = [i for i in range(len(samples)) if i not in adapters]
        with phases("adapt", self.settings.steps if missing else 0):
            if missing:
                trained = self.train(backbone, [samples[i] for i in missing], phases)
                adapters.update(zip(missing, trained, strict=True))
            for i in missing:
                if folder := folders[i]:
                    keep(adapters[i], folder)
        return [adapters[i] for i in range(len(samples))]

    def folder(self, backbone: StableDiffusion, sample: DragSample) -> Path | None:
        """Where this picture's adapter is kept: a key of picture, settings and base weights."""
        if self.cache is None:
            return None
        about = (
            CACHE_FORMAT,
            digest(sample.image),
            sample.prompt,
            sorted(asdict(self.settings).items()),
            backbone.resolution,
            str(backbone.dtype),
            backbone.fingerprint(),
        )
        return self.cache / hashlib.sha256(repr(about).encode()).hexdigest()[:32]

    def train(
        self, backbone: StableDiffusion, samples: Sequence[DragSample], phases: Phases
    ) -> list[Adapter]:
        """Fit the adapters of all samples at once."""
        s = self.settings
        generators = [generator(s.seed, "adapt", digest(sample.image)) for sample in samples]
        start = [initial_adapter(backbone.unet, s.rank, s.targets, g) for g in generators]
        mean, std = self._posterior(backbone, samples, generators)
        with backbone.adapted(start, trainable=True) as stacks:
            assert backbone.adapters.flat is not None
            module = LoraAdaptation(
                backbone=backbone,
                weights=backbone.adapters.flat,
                mean=mean,
                std=std if s.posterior == "sample" else torch.zeros_like(std),
                text=backbone.embed([sample.prompt for sample in samples]),
                lr=s.lr,
                betas=s.betas,
                weight_decay=s.weight_decay,
            )
            trainer = quiet_trainer(backbone.device, phases.callbacks, max_steps=s.steps)
            trainer.fit(module, Draws(generators, s.steps, s.batch_size, mean.shape[2:]))
            return unstack(stacks)

    def _posterior(
        self,
        backbone: StableDiffusion,
        samples: Sequence[DragSample],
        generators: Sequence[torch.Generator],
    ) -> tuple[Tensor, Tensor]:
        """Posterior of the crops, (sets, samples * batch_size, c, h, w)."""
        s = self.settings
        sets = s.steps if s.crop == "each_step" else 1
        moments = [
            backbone.encode(
                torch.stack(
                    [
                        training_crop(sample.image, backbone.resolution, s.crop, g)
                        for sample, g in zip(samples, generators, strict=True)
                        for _ in range(s.batch_size)
                    ]
                )
            )
            for _ in range(sets)
        ]
        mean, std = (torch.stack(moment) for moment in zip(*moments, strict=True))
        return mean, std


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


def training_crop(
    image: Float[Tensor, "3 h w"], side: int, crop: str, generator: torch.Generator
) -> Float[Tensor, "3 side side"]:
    """The shorter side resized to `side`, then a random square (lora_utils.py:255-262)."""
    height, width = image.shape[1:]
    scale = side / min(height, width)
    size = (side, side) if crop == "none" else (round(height * scale), round(width * scale))
    resized = functional.interpolate(
        image[None], size, mode="bilinear", antialias=True, align_corners=False
    )[0]
    top, left = (int(torch.randint(extent - side + 1, (), generator=generator)) for extent in size)
    return resized[:, top : top + side, left : left + side]


def digest(image: Float[Tensor, "3 h w"]) -> str:
    """A hash of the picture's bytes and shape."""
    data = image.detach().cpu().contiguous()
    return hashlib.sha256(repr(data.shape).encode() + data.numpy().tobytes()).hexdigest()


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """A hash of tensors' names, shapes and bytes, say of an adapter's."""
    found = hashlib.sha256()
    for key in sorted(tensors):
        data = tensors[key].detach().cpu().contiguous()
        found.update(f"{key}{data.dtype}{tuple(data.shape)}".encode())
        found.update(data.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def keep(adapter: Adapter, folder: Path) -> None:
    """Put an adapter into the cache; without room or right to write the edit goes on."""
    try:
        save_adapter(adapter, folder)
    except OSError as error:
        print(
            f"the LoRA could not be cached in {folder} ({error.strerror or error}): "
            "give another cache=DIR, or adapt.cache=null",
            file=sys.stderr,
        )


class NoAdapter:
    """Edits with the backbone as it is."""

    def __call__(
        self, backbone: StableDiffusion, samples: Sequence[DragSample], phases: Phases
    ) -> None:
        """No adapters."""


class AdapterFromFile:
    """Uses a LoRA that exists already, of any tool.

    Args:
        path: see `gooddrag.backbones.adapter_files.load_adapter`.
    """

    def __init__(self, *, path: str) -> None:
        self.path = path

    def __call__(
        self, backbone: StableDiffusion, samples: Sequence[DragSample], phases: Phases
    ) -> list[Adapter]:
        """The file's adapter for every sample."""
        return [load_adapter(self.path)] * len(samples)
