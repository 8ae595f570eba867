"""Loading a diffusers-layout checkpoint, and refusing one that cannot work, by name."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer

COMPONENTS: dict[str, type[Any]] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "tokenizer": CLIPTokenizer,
    "scheduler": DDIMScheduler,
}
WEIGHTS = ("unet", "vae", "text_encoder")


def load_components(
    path: str, vae: str | None = None, revision: str | None = None, variant: str | None = None
) -> dict[str, Any]:
    """The parts of a Stable Diffusion 1.x or 2.x pipeline.

    Args:
        path: a local folder in diffusers layout, or a hub id.
        vae: another VAE, a folder or hub id; None takes the checkpoint's own.
        revision: a hub revision.
        variant: of the weight files, say "fp16".

    Returns:
        unet, vae, text_encoder, tokenizer and scheduler.

    Raises:
        ValueError: nothing there, incomplete, or a model of another kind.
    """
    path, vae = os.path.expanduser(path), os.path.expanduser(vae) if vae else None
    index = _index(path, revision)
    _check_index(path, index)
    parts = {
        name: _load(path, name, revision, variant if name in WEIGHTS else None)
        for name in COMPONENTS
        if not (name == "vae" and vae)
    }
    if vae:
        parts["vae"] = _load(vae, "vae", None, None, subfolder=None)
    _check_parts(path, parts)
    return parts


def _index(path: str, revision: str | None) -> dict[str, Any]:
    folder = Path(path)
    if folder.is_file() or (folder.suffix in {".safetensors", ".ckpt"}):
        raise ValueError(
            f"{path} is a single checkpoint file; give a folder in diffusers layout (convert it "
            "with diffusers' from_single_file and save_pretrained)"
        )
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise ValueError(
            f"{path} holds no model_index.json: it is no diffusers checkpoint, or its download "
            "did not finish"
        )
    if not folder.is_dir() and (path.startswith((".", "/", "~")) or path.count("/") != 1):
        raise ValueError(f"there is no folder {path}, and it is no hub id (owner/name) either")
    try:
        return dict(DiffusionPipeline.load_config(path, revision=revision))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot load {path}: no such folder here, and the hub did not give it ({_why(error)})"
        ) from error


def _check_index(path: str, index: dict[str, Any]) -> None:
    kind = index.get("_class_name", "an unnamed pipeline")
    if "transformer" in index:
        raise ValueError(
            f"{path} is {kind}, a transformer (DiT); dragging needs the UNet of Stable Diffusion "
            "1.x or 2.x"
        )
    if "text_encoder_2" in index:
        raise ValueError(
            f"{path} is {kind}, a Stable Diffusion XL; only 1.x and 2.x can be dragged"
        )
    for name in COMPONENTS:
        if index.get(name, [None, None])[1] is None:
            raise ValueError(
                f"{path} is {kind} without {name}; it needs Stable Diffusion 1.x or 2.x"
            )


def _load(
    path: str, name: str, revision: str | None, variant: str | None, subfolder: str | None = ""
) -> Any:
    options: dict[str, Any] = {"revision": revision} if revision else {}
    if variant:
        options["variant"] = variant
    if subfolder is not None:
        options["subfolder"] = name
    try:
        return COMPONENTS[name].from_pretrained(path, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"cannot load the {name} of {path}: missing, incomplete or of another kind "
            f"({_why(error)})"
        ) from error


def _why(error: BaseException) -> str:
    """The error's first line, or that the hub was not reached, of which diffusers says nothing."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, LocalEntryNotFoundError):
            return "it was not reached, nor is it in its cache: connect, or give a folder's path"
        seen = seen.__cause__ or seen.__context__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _check_parts(path: str, parts: dict[str, Any]) -> None:
    unet, vae, scheduler = parts["unet"].config, parts["vae"].config, parts["scheduler"].config
    if unet.in_channels != vae.latent_channels:
        kind = {9: "an inpainting UNet", 8: "an instruct or depth UNet"}.get(
            unet.in_channels, "a UNet"
        )
        raise ValueError(
            f"{path} has {kind} with {unet.in_channels} input channels, the VAE's latents have "
            f"{vae.latent_channels}; take a plain text-to-image checkpoint"
        )
    if unet.addition_embed_type is not None or unet.class_embed_type is not None:
        added = unet.addition_embed_type or unet.class_embed_type
        raise ValueError(
            f"{path} has a UNet with added embeddings ({added}), "
            "as SDXL's; only Stable Diffusion 1.x and 2.x can be dragged"
        )
    if unet.cross_attention_dim != parts["text_encoder"].config.hidden_size:
        raise ValueError(
            f"{path}: the UNet expects text of width {unet.cross_attention_dim}, the text encoder "
            f"gives {parts['text_encoder'].config.hidden_size}: parts of different checkpoints"
        )
    if scheduler.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"{path} predicts {scheduler.prediction_type!r}; epsilon and v_prediction are supported"
        )


def fingerprint(*models: torch.nn.Module) -> str:
    """A checksum of all weights, computed where they lie, that any change of a weight changes.

    Two sums over the bytes of each tensor, the second weighted by position, in integers, so that
    every device gives the same.
    """
    lines = [
        f"{name}{tuple(tensor.shape)}{_byte_sums(tensor)}"
        for model in models
        for name, tensor in model.state_dict().items()
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _byte_sums(tensor: torch.Tensor, chunk: int = 1 << 22) -> tuple[int, int]:
    """The sums, in chunks: 64-bit copies of a whole tensor would need eight times its bytes."""
    data = tensor.detach().contiguous().flatten().view(torch.uint8)
    place = torch.arange(min(chunk, len(data)), device=data.device) % 65521 + 1
    plain = weighted = 0
    for number, part in enumerate(data.split(chunk)):
        wide = part.to(torch.int64)
        total = int(wide.sum())
        plain += total
        weighted += int((wide * place[: len(wide)]).sum()) + number * total
    return plain, weighted
