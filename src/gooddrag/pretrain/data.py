"""Pictures and latents that stay on the device for the whole run."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from gooddrag.pretrain.parts import encode_moments
from gooddrag.pretrain.settings import Machine, Pictures, World


@dataclass(frozen=True)
class Posteriors:
    """q(z|x) of many pictures: mean and std [N, 4, h, w]."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class LatentSet(Posteriors):
    """Posteriors of many pictures with their family numbers [N]."""

    families: Tensor


def say(text: str) -> None:
    """Prints a progress line at once, also into a pipe."""
    print(text, flush=True)


def to_model_range(pictures: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] to float32 in [-1, 1], channels last."""
    return (pictures.float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


def rendered_chunks(
    world: World, pictures: Pictures, machine: Machine
) -> Iterator[tuple[Tensor, Tensor]]:
    """Renders the training split chunk by chunk: uint8 [chunk, 3, H, W], families [chunk].

    Stops early, and says so, once `max_render_minutes` have passed: a slow renderer then costs
    pictures, not the time for training. Every chunk has the same size, for the compiled encoder.
    """
    start = time.monotonic()
    limit = math.inf if pictures.max_render_minutes is None else 60 * pictures.max_render_minutes
    last_said = start
    for first in range(0, pictures.count, pictures.chunk):
        indices = range(first, first + pictures.chunk)
        x, families = world.render_pictures(
            "train", pictures.seed, indices, machine.picture_size, machine.torch_device()
        )
        yield (x * 255).round().to(torch.uint8), families.to(machine.torch_device())
        now, done = time.monotonic(), first + pictures.chunk
        if now - last_said > 10:
            say(f"  {done}/{pictures.count} pictures, {done / (now - start):.0f} pictures/s")
            last_said = now
        if now - start > limit and done < pictures.count:
            say(f"  stopped at {done} of {pictures.count} pictures: max_render_minutes is over")
            return


def render_training_pictures(world: World, pictures: Pictures, machine: Machine) -> Tensor:
    """Renders the training pictures into one uint8 tensor [N, 3, H, W] on the device."""
    size, start, filled = machine.picture_size, time.monotonic(), 0
    chunks = math.ceil(pictures.count / pictures.chunk)
    # Allocated once: collecting and joining would need twice the memory.
    held = torch.empty(
        chunks * pictures.chunk, 3, size, size, dtype=torch.uint8, device=machine.torch_device()
    )
    for x, _ in rendered_chunks(world, pictures, machine):
        held[filled : filled + len(x)] = x
        filled += len(x)
    say(f"rendered {filled} pictures in {time.monotonic() - start:.1f} s")
    return held[:filled]


def render_test_pictures(
    world: World, *, count: int, chunk: int, seed: int, machine: Machine
) -> tuple[Tensor, Tensor]:
    """Renders the first `count` pictures of the test split: [N, 3, H, W] in [0, 1], families."""
    device, batches = machine.torch_device(), []
    for first in range(0, count, chunk):
        indices = range(first, min(first + chunk, count))
        x, families = world.render_pictures("test", seed, indices, machine.picture_size, device)
        # Through uint8, as the pictures that people and the training see.
        batches.append(((x * 255).round() / 255, families.to(device)))
    return torch.cat([x for x, _ in batches]), torch.cat([family for _, family in batches])


@torch.no_grad()
def encode_training_pictures(
    vae: AutoencoderKL, world: World, pictures: Pictures, machine: Machine
) -> LatentSet:
    """Renders and encodes the training pictures; posteriors are kept in half precision.

    The encoder runs in float32 (TF32): bf16 would add noise of the size of the posterior's own.
    """
    start, device = time.monotonic(), machine.torch_device()
    vae = vae.to(device).eval().requires_grad_(False)
    vae = vae.to(memory_format=torch.channels_last)
    if machine.compiles():
        vae.encoder.compile(dynamic=False)
    means, stds, families = [], [], []
    for x, family in rendered_chunks(world, pictures, machine):
        mean, logvar = encode_moments(vae, to_model_range(x))
        means.append(mean.half())
        stds.append((0.5 * logvar).exp().half())
        families.append(family)
    latents = LatentSet(torch.cat(means), torch.cat(stds), torch.cat(families))
    say(f"encoded {len(latents.families)} pictures in {time.monotonic() - start:.1f} s")
    return latents


def cached_latents(
    path: Path, vae: AutoencoderKL, world: World, pictures: Pictures, machine: Machine, vae_key: str
) -> LatentSet:
    """Reads the encoded pictures that an earlier call left, or makes and leaves them.

    A cache that is of another autoencoder or of other pictures is made anew.
    """
    key = [vae_key, pictures.count, pictures.seed, machine.picture_size, list(world.FAMILIES)]
    if path.exists():
        held = torch.load(path, map_location=machine.torch_device(), weights_only=True)
        if held["key"] == key:
            say(f"read {len(held['families'])} encoded pictures from {path}")
            return LatentSet(held["mean"], held["std"], held["families"])
    latents = encode_training_pictures(vae, world, pictures, machine)
    save_atomically({"key": key, **vars(latents)}, path)
    return latents


def save_atomically(content: object, path: Path) -> None:
    """Saves under another name first, so that a killed run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    torch.save(content, part)
    os.replace(part, path)
