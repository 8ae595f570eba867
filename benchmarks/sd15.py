"""A Stable Diffusion of SD 1.5's size with random weights of fixed seed: no download, same cost."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from gooddrag.pretrain.parts import make_text_encoder
from tests.tiny import save_pipeline


def random_sd15(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Writes the checkpoint in diffusers layout, unless it is there already.

    UNet and VAE have SD 1.5's own configuration. The text encoder has its width, SD 1.5's
    vocabulary replaced by the project's bytes: it runs once per edit and costs next to nothing.

    Args:
        folder: where to.
        dtype: of the weights on disk.
        seed: of the weights.
    """
    if (folder / "model_index.json").exists():
        return folder
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
            sample_size=512,
        )
        text_encoder = make_text_encoder(
            hidden_size=768, layers=12, heads=12, inner=3072, embedding_std=0.02
        )
    return save_pipeline(folder, vae.to(dtype), unet.to(dtype), text_encoder.to(dtype))
