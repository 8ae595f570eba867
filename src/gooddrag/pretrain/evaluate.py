"""Numbers and pictures that say how good the trained parts are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image, ImageDraw
from torch import Tensor

from gooddrag.pretrain.data import Posteriors
from gooddrag.pretrain.parts import decode, encode_moments
from gooddrag.pretrain.unet_training import NoiseTraining

TITLE_HEIGHT = 16


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB per picture [B], of pictures [B, 3, H, W] in [0, 1].

    >>> psnr(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.1)).round().item()
    20.0
    """
    return -10 * (x - y).square().mean(dim=(1, 2, 3)).clamp(min=1e-12).log10()


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: Tensor, *, chunk: int) -> Tensor:
    """Decodes the posterior's mean: pictures [N, 3, H, W] in [0, 1] to the same."""
    parts = [decode(vae, encode_moments(vae, 2 * x - 1)[0]) for x in pictures.split(chunk)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def encode_posteriors(vae: AutoencoderKL, pictures: Tensor, *, chunk: int) -> Posteriors:
    """Encodes pictures [N, 3, H, W] in [0, 1]."""
    moments = [encode_moments(vae, 2 * x - 1) for x in pictures.split(chunk)]
    mean, logvar = (torch.cat(part) for part in zip(*moments, strict=True))
    return Posteriors(mean, (0.5 * logvar).exp())


def latent_statistics(latents: Posteriors) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, [4] each, of latents drawn from the posteriors."""
    mean = latents.mean.double().mean(dim=(0, 2, 3))
    spread = latents.mean.double().var(dim=(0, 2, 3), correction=0)
    noise = latents.std.double().square().mean(dim=(0, 2, 3))
    return mean.float(), (spread + noise).sqrt().float()


@torch.no_grad()
def noise_error(
    module: NoiseTraining, latents: Posteriors, families: Tensor, *, chunk: int, seed: int
) -> dict[str, float]:
    """eps-error of the averaged weights on fixed noise, with each caption and with none."""
    errors: dict[str, list[Tensor]] = {"captioned": [], "empty": []}
    generator = torch.Generator(latents.mean.device).manual_seed(seed)
    for mean, family in zip(latents.mean.split(chunk), families.split(chunk), strict=True):
        eps = torch.randn(mean.shape, generator=generator, device=mean.device)
        t = torch.randint(
            len(module.alphas_cumprod), family.shape, generator=generator, device=mean.device
        )
        z_0 = module.scaling_factor * mean
        nothing = torch.full_like(family, len(module.tokens) - 1)
        errors["captioned"].append(module.losses(module.ema, z_0, eps, t, family))
        errors["empty"].append(module.losses(module.ema, z_0, eps, t, nothing))
    return {f"test_mse_{name}": float(torch.cat(parts).mean()) for name, parts in errors.items()}


@torch.no_grad()
def caption_errors(
    module: NoiseTraining,
    latents: Posteriors,
    families: Tensor,
    *,
    timesteps: Sequence[int],
    chunk: int,
    seed: int,
) -> dict[str, list[float]]:
    """eps-error of the averaged weights at fixed noise levels: right, wrong and empty captions.

    A wrong caption is that of the next family.
    """
    empty = len(module.tokens) - 1
    captions = {
        "right": families,
        "wrong": (families + 1) % empty,
        "empty": torch.full_like(families, empty),
    }
    z_0 = module.scaling_factor * latents.mean
    generator = torch.Generator(z_0.device).manual_seed(seed)
    eps = torch.randn(z_0.shape, generator=generator, device=z_0.device)
    result: dict[str, list[float]] = {"timesteps": list(timesteps)}
    for name, numbers in captions.items():
        result[name] = []
        for t in timesteps:
            parts = [
                module.losses(module.ema, z, e, torch.full_like(c, t), c)
                for z, e, c in zip(
                    z_0.split(chunk), eps.split(chunk), numbers.split(chunk), strict=True
                )
            ]
            result[name].append(float(torch.cat(parts).mean()))
    return result


@torch.no_grad()
def sample_rows(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    *,
    columns: int,
    steps: int,
    guidance: float,
    size: int,
    seed: int,
) -> list[Tensor]:
    """Draws one row [columns, 3, size, size] in [0, 1] per prompt; a column shares its noise."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed + c) for _ in prompts for c in range(columns)]
    pictures = pipeline(
        prompt=[prompt for prompt in prompts for _ in range(columns)],
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=size,
        width=size,
        generator=generators,
        output_type="pt",
    ).images
    return list(pictures.split(columns))


def save_grid(path: Path, rows: Sequence[Tensor], titles: Sequence[str]) -> None:
    """Saves rows of pictures [columns, 3, H, W] in [0, 1], each under its title, as one PNG."""
    height = rows[0].shape[2] + TITLE_HEIGHT
    width = sum(picture.shape[2] for picture in rows[0])
    sheet = Image.new("RGB", (width, height * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (row, title) in enumerate(zip(rows, titles, strict=True)):
        strip = torch.cat(list(row.float().cpu()), dim=2).clamp(0, 1)
        pixels = (strip * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        draw.text((3, number * height + 2), title or "(empty prompt)", fill="black")
        sheet.paste(Image.fromarray(pixels), (0, number * height + TITLE_HEIGHT))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
