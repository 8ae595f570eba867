"""A random Stable Diffusion of a few thousand weights, made by the tests themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch._dynamo.utils import counters
from transformers import CLIPTextModel

from gooddrag.backbones.engine import Engine
from gooddrag.backbones.stable_diffusion import StableDiffusion
from gooddrag.composition import composer, instantiate
from gooddrag.pretrain.parts import make_text_encoder, make_tokenizer
from gooddrag.types import DragSample

WIDTH = 16


@contextmanager
def something_compiled() -> Iterator[None]:
    """Asserts that torch.compile was at work inside."""
    torch.compiler.reset()  # what was compiled before would be taken again
    counters.clear()
    yield
    assert counters["stats"]["unique_graphs"] > 0


def make_pipeline(
    folder: Path,
    *,
    prediction_type: str = "epsilon",
    in_channels: int = 4,
    linear_projection: bool = False,
) -> Path:
    """Write the pipeline in diffusers layout; SD 1.5's block types, sixteen layers of attention."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[8, 8, 8, 8],
            norm_num_groups=4,
            layers_per_block=1,
            latent_channels=4,
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=in_channels,
            block_out_channels=(WIDTH, WIDTH, WIDTH, WIDTH),
            layers_per_block=2,
            norm_num_groups=4,
            attention_head_dim=2,
            cross_attention_dim=WIDTH,
            use_linear_projection=linear_projection,
        )
        text_encoder = make_text_encoder(
            hidden_size=WIDTH, layers=1, heads=2, inner=WIDTH, embedding_std=0.5
        )
    return save_pipeline(folder, vae, unet, text_encoder, prediction_type)


def save_pipeline(
    folder: Path,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    prediction_type: str = "epsilon",
) -> Path:
    """Write parts as a pipeline in diffusers layout, with SD 1.5's noise schedule."""
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
        prediction_type=prediction_type,
    )
    StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=make_tokenizer(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@cache
def engine_of(name: str) -> Engine:
    """A file of conf/engine."""
    with composer() as compose:
        engine: Engine = instantiate(compose("edit", [f"engine={name}"]).engine)
    return engine


def load(
    folder: Path,
    dtype: str = "float32",
    low_memory: bool = False,
    device: str = "cpu",
    engine: Engine | None = None,
) -> StableDiffusion:
    """The pipeline as a backbone."""
    return StableDiffusion(
        path=str(folder),
        vae=None,
        revision=None,
        variant=None,
        dtype=dtype,
        device=device,
        feature_block=2,
        resolution=64,
        low_memory=low_memory,
        engine=engine or engine_of("default"),
    )


def make_sample(
    seed: int = 0, pairs: int = 2, size: tuple[int, int] = (64, 64), mask: bool = True
) -> DragSample:
    """A smooth random picture with points and a mask that frees the left two thirds."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    image = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)[0]
    extent = torch.tensor([size[1], size[0]])
    handles = (torch.rand(pairs, 2, generator=generator) * (extent - 1)).floor()
    targets = (torch.rand(pairs, 2, generator=generator) * (extent - 1)).floor()
    free = torch.zeros(1, *size)
    free[..., : size[1] * 2 // 3] = 1
    return DragSample(
        image=image,
        handles=handles,
        targets=targets,
        mask=free if mask else None,
        name=f"random_{seed}",
    )
