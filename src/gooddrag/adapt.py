"""Where a picture's LoRA comes from: trained, out of the cache, from a file, or nowhere."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gooddrag.backbones.adapter_files import ADAPTER_FILE, load_adapter, save_adapter
from gooddrag.backbones.adapters import initial_adapter, unstack
from gooddrag.backbones.base import Adapter
from gooddrag.backbones.stable_diffusion import StableDiffusion
from gooddrag.events import Phases
from gooddrag.fitting import quiet_trainer
from gooddrag.lora import Draws, LoraAdaptation, random_corner, training_picture
from gooddrag.seeding import generator
from gooddrag.types import DragSample

CACHE_FORMAT = 1  # raise when the meaning of a cached adapter changes


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
        if not self.targets:
            raise ValueError("adapt.targets is empty: name projections, or train none: adapt=none")
        for name in ("rank", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"adapt.{name} must be at least 1, found {getattr(self, name)}")
        if self.lr <= 0 or self.weight_decay < 0 or not all(0 <= b < 1 for b in self.betas):
            raise ValueError(
                "adapt.lr must be positive, weight_decay not negative and betas between 0 and 1, "
                f"found {self.lr}, {self.weight_decay} and {list(self.betas)}"
            )


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
        self._last: dict[Path, Adapter] = {}

    def __call__(
        self, backbone: StableDiffusion, samples: Sequence[DragSample], phases: Phases
    ) -> list[Adapter]:
        """One adapter for each sample, in order; the last are not read from the cache again."""
        folders = [self.folder(backbone, sample) for sample in samples]
        kept = {
            folder: self._last.get(folder) or load_adapter(folder)
            for folder in dict.fromkeys(folders)
            if folder and (folder / ADAPTER_FILE).is_file()
        }
        adapters = {i: kept[folder] for i, folder in enumerate(folders) if folder in kept}
        missing = [i for i in range(len(samples)) if i not in adapters]
        with phases("adapt", self.settings.steps if missing else 0):
            if missing:
                trained = self.train(backbone, [samples[i] for i in missing], phases)
                adapters.update(zip(missing, trained, strict=True))
            for i in missing:
                if folder := folders[i]:
                    keep(adapters[i], folder)
        self._last = {folder: adapters[i] for i, folder in enumerate(folders) if folder}
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
        """Posterior of the crops, (sets, samples * batch_size, c, h, w).

        A crop that comes again is encoded once: of a square picture there is only one.
        """
        s, side = self.settings, backbone.resolution
        pictures = [training_picture(sample.image, side, s.crop) for sample in samples]
        places = [
            (i, *random_corner(pictures[i].shape[1:], side, g))
            for _ in range(s.steps if s.crop == "each_step" else 1)
            for i, g in enumerate(generators)
            for _ in range(s.batch_size)
        ]
        moments = {}
        for place in places:
            if place not in moments:
                i, top, left = place
                crop = pictures[i][:, top : top + side, left : left + side]
                moments[place] = backbone.encode(crop[None])
        means, stds = zip(*(moments[place] for place in places), strict=True)
        batch = len(samples) * s.batch_size
        return torch.cat(means).unflatten(0, (-1, batch)), torch.cat(stds).unflatten(0, (-1, batch))


def digest(image: Float[Tensor, "3 h w"]) -> str:
    """A hash of the picture's bytes and shape."""
    data = image.detach().cpu().contiguous()
    return hashlib.sha256(repr(data.shape).encode() + data.numpy().tobytes()).hexdigest()


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
