"""Writing the model in diffusers layout, and reading weights back from checkpoints."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from gooddrag.pretrain.parts import make_tokenizer, write_tokenizer
from gooddrag.pretrain.settings import ModelFactories, Report

Module = TypeVar("Module", bound=nn.Module)


def averaged_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Reads the averaged weights from a last.ckpt, on the CPU.

    Raises:
        ValueError: There is no such checkpoint.
    """
    if not checkpoint.exists():
        raise ValueError(f"{checkpoint} is not there: train that stage first")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "ema."
    return {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}


def part_of(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Picks the weights of one part and drops its name from theirs."""
    prefix = name + "."
    return {key.removeprefix(prefix): t for key, t in weights.items() if key.startswith(prefix)}


def halved(module: Module) -> Module:
    """Copies a module to float16 on the CPU, in plain memory layout.

    Raises:
        ValueError: A weight does not fit into float16.
    """
    half = copy.deepcopy(module).cpu().half()
    half.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for name, weight in half.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(f"{type(module).__name__}.{name} does not fit into float16")
    return half


def replace_folder(new: Path, old: Path) -> None:
    """Puts a finished folder where an older one may stand, readable and without local paths."""
    for file in new.rglob("*.*"):
        file.chmod(0o644)  # safetensors writes for the owner alone
    for file in new.rglob("config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2) + "\n")
    if old.exists():
        shutil.rmtree(old)
    os.replace(new, old)


def save_vae(vae: AutoencoderKL, folder: Path, *, max_shard_size: str) -> None:
    """Saves an autoencoder in float16."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    halved(vae).save_pretrained(part, max_shard_size=max_shard_size)
    replace_folder(part, folder)


def weights_key(folder: Path) -> str:
    """Names the weights in a folder: the start of their SHA-256."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def export_pipeline(
    *,
    vae_folder: Path,
    checkpoint: Path,
    models: ModelFactories,
    folder: Path,
    max_shard_size: str,
) -> Report:
    """Writes the whole Stable Diffusion, in float16 shards, and tells the sizes in MB.

    Only the text encoder is float32.
    """
    weights = averaged_weights(checkpoint)
    unet, text_encoder = models.unet(), models.text_encoder()
    unet.load_state_dict(part_of(weights, "unet"))
    text_encoder.load_state_dict(part_of(weights, "text_encoder"))
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(vae_folder, torch_dtype=torch.float16),
        # Transformers loads in the stored precision, diffusers in float32: a float16 text encoder
        # would not fit to the rest of a pipeline that is loaded without arguments.
        text_encoder=text_encoder.float().cpu(),
        tokenizer=make_tokenizer(),
        unet=halved(unet),
        scheduler=models.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    pipeline.save_pretrained(part, max_shard_size=max_shard_size)
    prefix_text_encoder(part / "text_encoder" / "model.safetensors")
    # The classic four files instead of the one that only newer transformers read.
    shutil.rmtree(part / "tokenizer")
    write_tokenizer(part / "tokenizer")
    replace_folder(part, folder)
    return folder_sizes(folder)


def prefix_text_encoder(path: Path) -> None:
    """Names the text encoder's weights as every published SD does, `text_model.` first.

    Transformers 5 leaves that out and reads both; older versions would silently start from
    random weights.
    """
    prefix = "text_model."
    weights = {prefix + key.removeprefix(prefix): t for key, t in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def folder_sizes(folder: Path) -> Report:
    """Tells a model folder's size and its largest file's, in MB."""
    sizes = [file.stat().st_size / 1e6 for file in folder.rglob("*") if file.is_file()]
    return {"total_mb": round(sum(sizes), 3), "largest_file_mb": round(max(sizes), 3)}


def warm_started(models: ModelFactories, folder: Path | None) -> ModelFactories:
    """Makers that begin with the float32 copy of an exported model's weights, if one is given."""
    if folder is None:
        return models

    def load(kind: Any, part: str) -> functools.partial[Any]:
        return functools.partial(kind.from_pretrained, folder / part, torch_dtype=torch.float32)

    return ModelFactories(
        vae=load(AutoencoderKL, "vae"),
        unet=load(UNet2DConditionModel, "unet"),
        text_encoder=load(CLIPTextModel, "text_encoder"),
        scheduler=models.scheduler,
    )


def update_report(path: Path, section: str, values: Report) -> None:
    """Writes one section of report.json and leaves the others."""
    report = json.loads(path.read_text()) if path.exists() else {}
    report[section] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(report, indent=2, default=str) + "\n")
    os.replace(part, path)
