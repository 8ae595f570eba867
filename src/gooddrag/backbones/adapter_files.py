"""LoRA files: written in the two forms that other tools read, read in all of theirs."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_unet_state_dict_to_peft
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gooddrag.backbones.adapters import modules_of
from gooddrag.backbones.base import Adapter

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
METADATA_KEY = "lora_adapter_metadata"


def save_adapter(adapter: Adapter, folder: Path) -> Path:
    """Write an adapter in both forms, each whole or not at all.

    `pytorch_lora_weights.safetensors` has the `unet.`-prefixed keys that other tools read;
    `adapter/pytorch_lora_weights.safetensors` diffusers' adapter form for
    `unet.load_lora_adapter(..., prefix=None)`.

    Returns:
        The path of the prefixed file.
    """
    rank = max(weight.shape[0] for key, weight in adapter.items() if ".lora_A." in key)
    config = {"r": rank, "lora_alpha": rank, "target_modules": modules_of(adapter)}
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    write_atomically(
        adapter,
        folder / "adapter" / ADAPTER_FILE,
        {"format": "pt", METADATA_KEY: json.dumps(config)},
    )
    path = folder / ADAPTER_FILE
    write_atomically({f"unet.{key}": w for key, w in adapter.items()}, path, {"format": "pt"})
    return path


def write_atomically(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Save under a temporary name, then rename: readers and rivals see all of it or nothing."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata=metadata)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except SafetensorError as error:  # what a full disk raises
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def load_adapter(path: str | Path) -> Adapter:
    """Read a LoRA file: diffusers' forms old and new, PEFT's, kohya's.

    Scales (alpha / rank) are folded into lora_B. Text encoder weights are left out with a warning,
    since editing adapts the UNet alone.

    Args:
        path: the file, or a folder that holds `pytorch_lora_weights.safetensors`.

    Raises:
        ValueError: missing, unreadable, without UNet weights, or with layers other than linear
            ones and 1 x 1 convolutions.
    """
    path = Path(path).expanduser()
    path = path / ADAPTER_FILE if path.is_dir() else path
    state, metadata = _read(path)
    state, alphas = StableDiffusionPipeline.lora_state_dict(state)
    unet = {key: w for key, w in state.items() if not key.startswith("text_encoder.")}
    if len(unet) < len(state):
        warnings.warn(f"{path}: the text encoder's LoRA weights are not used", stacklevel=2)
    adapter = {
        key.removeprefix("unet."): weight
        for key, weight in convert_unet_state_dict_to_peft(unet).items()
        if ".lora_A." in key or ".lora_B." in key
    }
    if not adapter:
        raise ValueError(f"{path} holds no LoRA weights of a UNet")
    scales = _scales(adapter, alphas or {}, metadata)
    return {
        key: _matrix(path, key, weight) * (scales[key] if ".lora_B." in key else 1.0)
        for key, weight in adapter.items()
    }


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise ValueError(f"no LoRA file at {path}")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
        return torch.load(path, map_location="cpu", weights_only=True), {}
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is no readable LoRA file: {error}") from error
    except Exception as error:  # a pickle's own errors have no common type
        raise ValueError(f"{path} is no readable LoRA file: {type(error).__name__}") from error


def _scales(
    adapter: Adapter, alphas: dict[str, float], metadata: dict[str, str]
) -> dict[str, float]:
    """alpha / rank for each lora_B key; 1 where the file names no alpha, as diffusers has it."""
    config = {  # a whole pipeline's file names the part first: "unet.lora_alpha"
        key.removeprefix("unet."): value
        for key, value in json.loads(metadata.get(METADATA_KEY, "{}")).items()
        if not key.startswith("text_encoder.")
    }
    if config.get("alpha_pattern") or config.get("use_rslora") or config.get("use_dora"):
        raise ValueError(
            "the LoRA file scales its layers one by one (alpha_pattern, rsLoRA or DoRA), which is "
            "not supported: save it with one alpha"
        )
    renamed = convert_unet_state_dict_to_peft(
        {key.removeprefix("unet.").removesuffix(".alpha"): value for key, value in alphas.items()}
    )
    by_module = {key.rsplit(".lora_", 1)[0]: float(alpha) for key, alpha in renamed.items()}
    scales = {}
    for name in modules_of(adapter):
        rank = adapter[f"{name}.lora_A.weight"].shape[0]
        alpha = by_module.get(name, config.get("lora_alpha", rank))
        scales[f"{name}.lora_B.weight"] = float(alpha) / rank
    return scales


def _matrix(path: Path, key: str, weight: Tensor) -> Tensor:
    if weight.ndim == 4 and weight.shape[2:] == (1, 1):
        weight = weight.flatten(1)
    if weight.ndim != 2:
        raise ValueError(
            f"{path}: {key} has shape {tuple(weight.shape)}; only linear layers and 1 x 1 "
            "convolutions can be adapted"
        )
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
