"""The parts of the embedded model that diffusers does not make from a config alone."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
MAX_TOKENS = 77


def byte_alphabet() -> list[str]:
    """Lists one printable character per byte, in CLIP's order: the printable bytes come first.

    Source: openai/CLIP `simple_tokenizer.py`, bytes_to_unicode.

    >>> len(set(byte_alphabet())), byte_alphabet()[0]
    (256, '!')
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + number) for number in range(others)]


def vocabulary() -> dict[str, int]:
    """Numbers the 514 tokens: 256 bytes, 256 bytes at the end of a word, start and end."""
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(symbol + WORD_END for symbol in alphabet), START, END]
    return {token: number for number, token in enumerate(tokens)}


def write_tokenizer(folder: Path) -> None:
    """Writes a CLIP tokenizer without merges in the classic layout, which every version reads."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "errors": "replace",
    }
    special = {key: value for key, value in settings.items() if str(key).endswith("_token")}
    files = {
        "vocab.json": json.dumps(vocabulary(), ensure_ascii=False, indent=0),
        "merges.txt": "#version: 0.2\n",
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def make_tokenizer() -> CLIPTokenizer:
    """Makes the byte-level tokenizer through its own files, so that both are the same thing."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return CLIPTokenizer.from_pretrained(folder)


def tokenise(captions: list[str]) -> Tensor:
    """Turns captions into token numbers [n, 77], padded with the end token.

    Raises:
        ValueError: A caption has more bytes than there are positions.
    """
    tokenizer = make_tokenizer()
    longest = max(captions, key=lambda text: len(tokenizer(text).input_ids))
    if len(tokenizer(longest).input_ids) > MAX_TOKENS:
        raise ValueError(f"the caption {longest!r} is longer than {MAX_TOKENS - 2} bytes: cut it")
    tokens = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")
    return tokens.input_ids


def make_text_encoder(
    *, hidden_size: int, layers: int, heads: int, inner: int, embedding_std: float
) -> CLIPTextModel:
    """Makes a tiny CLIP text encoder over the byte-level vocabulary.

    CLIP's own embeddings have std 0.02, and what all captions share soon outgrows them in the
    sum that the layers write to; `embedding_std` of 1 keeps the letters heard.
    """
    numbers = vocabulary()
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(numbers),
            hidden_size=hidden_size,
            projection_dim=hidden_size,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=numbers[START],
            eos_token_id=numbers[END],
            pad_token_id=numbers[END],
        )
    )
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=embedding_std)
    return model


def encode_moments(vae: AutoencoderKL, x: Tensor) -> tuple[Tensor, Tensor]:
    """q(z|x): mean and log-variance [B, 4, h, w] of pictures x [B, 3, H, W] in [-1, 1].

    Encoder and decoder are called one by one, not through `vae.encode`, because they are what
    gets compiled. Both results are float32.
    """
    mean, logvar = vae.quant_conv(vae.encoder(x)).float().chunk(2, dim=1)
    return mean, logvar.clamp(-30.0, 20.0)


def decode(vae: AutoencoderKL, z: Tensor) -> Tensor:
    """Decodes z: pictures [B, 3, H, W] in about [-1, 1], in float32, of unscaled latents z."""
    return vae.decoder(vae.post_quant_conv(z)).float()


@torch.no_grad()
def standardise(vae: AutoencoderKL, *, mean: Tensor, std: Tensor) -> None:
    """Rescales the latents in place so that `scaling_factor` * z has mean 0 and std 1.

    With a = std * scaling_factor the latents become (z - mean) / a and the decoder first undoes
    that; both maps are absorbed by the 1x1 convolutions, so reconstructions do not change.

    Args:
        vae: The autoencoder to change.
        mean: Mean of the latents per channel, [4].
        std: Standard deviation of the latents per channel, [4].
    """
    a = std * vae.config.scaling_factor
    to_moments, from_latent = vae.quant_conv, vae.post_quant_conv
    channels = len(a)
    to_moments.weight[:channels] /= a[:, None, None, None]
    to_moments.bias[:channels] = (to_moments.bias[:channels] - mean) / a
    to_moments.bias[channels:] -= 2 * a.log()
    from_latent.bias += from_latent.weight[:, :, 0, 0] @ mean
    from_latent.weight *= a[None, :, None, None]
