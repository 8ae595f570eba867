"""Stable Diffusion 1.x and 2.x as a `Backbone`."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gooddrag.backbones import loading
from gooddrag.backbones.adapters import AdapterBank
from gooddrag.backbones.base import Adapter
from gooddrag.backbones.engine import Engine
from gooddrag.backbones.layers import forget_residuals
from gooddrag.backbones.mutual import MutualLayers
from gooddrag.backbones.passes import UNetPasses
from gooddrag.backbones.precision import (
    HALF_GRADIENT_SCALE,
    choose_device,
    choose_dtype,
    scale_gradient,
)
from gooddrag.memory import let_segments_grow, out_of_memory
from gooddrag.remembered import Remembered

VAE_VALUES = 128 * 512 * 512  # of a map within the VAE: SD's first, of one picture


class StableDiffusion:
    """A frozen Stable Diffusion: VAE, text encoder, UNet; adapters and attention on demand.

    Weights have `dtype`; latents, features' consumers and LoRA weights keep float32 (float64
    where the weights are).

    Args:
        path: local folder in diffusers layout or hub id.
        vae: another VAE's folder or hub id, None for the checkpoint's own.
        revision: hub revision.
        variant: of the weight files, say "fp16".
        dtype: "auto", "float32", "float64", "bfloat16" or "float16".
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        feature_block: the up block whose output is F(z_t); 2 is the third.
        resolution: side of the square crops that LoRA adaptation trains on, pixels.
        low_memory: checkpoint gradients and tile the VAE.
        engine: how the UNet is run.

    Raises:
        ValueError: a checkpoint that cannot work, an unknown dtype or device.
    """

    def __init__(
        self,
        *,
        path: str,
        vae: str | None,
        revision: str | None,
        variant: str | None,
        dtype: str,
        device: str,
        feature_block: int,
        resolution: int,
        low_memory: bool,
        engine: Engine,
    ) -> None:
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # where graphs are recorded and kernels launched
            let_segments_grow()
        if self.device.type == "cuda" and self.dtype == torch.float32:
            torch.backends.cudnn.allow_tf32 = False  # which is on by default, and is not float32
        self.latent_dtype = torch.promote_types(self.dtype, torch.float32)
        self.resolution = resolution
        self.path = path
        parts = loading.load_components(path, vae, revision, variant)
        self.tokenizer, self.scheduler = parts["tokenizer"], parts["scheduler"]
        self.unet, self.vae, self.text_encoder = (
            parts[name].to(device=self.device, dtype=self.dtype).requires_grad_(False).eval()
            for name in loading.WEIGHTS
        )
        self.engine = engine.on(self.device, self.dtype)
        self.engine.prepare(self.unet)
        self.alphas_cumprod: Tensor = self.scheduler.alphas_cumprod
        # on the device, since sending a number there would wait for it
        self._timesteps = torch.arange(len(self.alphas_cumprod), device=self.device)
        self._alphas = self.alphas_cumprod.to(self.device)
        self.predicts_v = self.scheduler.config.prediction_type == "v_prediction"
        self.pixels_per_latent = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self._gradient_scale = HALF_GRADIENT_SCALE if self.dtype == torch.float16 else 1.0
        self.adapters = AdapterBank(self.unet, gradient_scale=1 / self._gradient_scale)
        self._mutual = MutualLayers(self.unet)
        self._embedded: Remembered[Tensor] = Remembered()
        self._planned: set[int] = set()  # batches
        if not 0 <= feature_block < len(self.unet.up_blocks):
            raise ValueError(
                f"backbone.feature_block must lie between 0 and {len(self.unet.up_blocks) - 1}, "
                f"found {feature_block}"
            )
        self._passes = UNetPasses(
            self.unet, self.engine, feature_block, self.adapters, self._mutual
        )
        self._fingerprint: str | None = None
        self.low_memory = False
        if low_memory:
            self.save_memory()
        if self._passes.are_recorded:
            self._load_libraries()

    def save_memory(self) -> None:
        """Trade time for memory: checkpointed gradients, a tiled VAE."""
        self.low_memory = self.adapters.save_memory = True
        forget_residuals(self.unet)
        self.adapters.forget_places()
        self._passes.clear()
        gc.collect()  # a failed fit leaves cycles that hold tensors
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.unet.enable_gradient_checkpointing(checkpointed)
        self.vae.enable_tiling()

    def _load_libraries(self) -> None:
        """Let the device's libraries read their kernels from disk now and not in the first edit.

        At the size that the model is made for: some are read, or planned, for large maps alone.
        """
        with self._enough_memory():
            z = self.encode(torch.zeros(1, 3, self.resolution, self.resolution))[0]
            self.decode(z)
            self.plan(1)
            for batch in (1, 2):  # to invert; to denoise an unedited latent and an edited one
                self._try(batch, gradient=False)
            with self.mutual_attention(torch.tensor([True]), start_layer=0):
                self._try(2, gradient=False)

    def plan(self, batch: int) -> None:
        """Let cuDNN plan attention with gradients now, for a batch at the model's own size.

        It plans for every shape, which takes longer than the first steps of an edit. Nothing
        happens where passes are not recorded.
        """
        if self._passes.are_recorded and batch not in self._planned:
            self._planned.add(batch)
            with self._enough_memory():
                self._try(batch, gradient=True)

    @contextmanager
    def _enough_memory(self) -> Iterator[None]:
        """Try what an edit may do without, which tells better what to do when memory runs out."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        torch.cuda.empty_cache()

    def _try(self, batch: int, gradient: bool) -> None:
        """A pass that nobody needs the result of."""
        side = self.resolution // self.pixels_per_latent
        size = (batch, self.unet.config.in_channels, side, side)
        z = torch.zeros(size, device=self.device, dtype=self.dtype, requires_grad=gradient)
        with torch.set_grad_enabled(gradient):
            text = self.embed([""]).repeat(batch, 1, 1)
            output, features = self._passes.unrecorded(z, self._timesteps[0], text)
        if gradient:
            torch.autograd.grad(output.sum() + features.sum(), z)

    def fingerprint(self) -> str:
        """A checksum of the weights that a LoRA is trained against.

        Raises:
            ValueError: adapters are in use.
        """
        if self._fingerprint is None:
            if self.adapters.in_use:
                raise ValueError("the weights are not their own while adapters are in use")
            self.adapters.unwrap()
            self._fingerprint = loading.fingerprint(self.unet, self.vae, self.text_encoder)
        return self._fingerprint

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b c lh lw"], Float[Tensor, "b c lh lw"]]:
        """Mean and standard deviation of the latents' posterior, times the scaling factor."""
        scale = self.vae.config.scaling_factor
        # to [-1, 1] before the cast, as the official code (ui_utils.py:190-195)
        pixels = (images.to(self.device) * 2 - 1).to(self.dtype)
        few = pixels.split(self._vae_batch(images.shape[2] * images.shape[3]))
        posteriors = [self.vae.encode(some).latent_dist for some in few]
        mean = torch.cat([posterior.mean for posterior in posteriors])
        std = torch.cat([posterior.std for posterior in posteriors])
        return mean.to(self.latent_dtype) * scale, std.to(self.latent_dtype) * scale

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [0, 1] from latents."""
        scaled = z.to(self.dtype) / self.vae.config.scaling_factor
        few = scaled.split(self._vae_batch(z.shape[2] * z.shape[3] * self.pixels_per_latent**2))
        pixels = torch.cat([self.vae.decode(some).sample for some in few])
        return (pixels.to(self.latent_dtype) / 2 + 0.5).clamp(0, 1)

    def _vae_batch(self, pixels: int) -> int:
        """Pictures of that many pixels to pass through the VAE at a time.

        Its maps are the largest of all: of SD's own it takes one, of smaller ones some, unless
        memory is short.
        """
        if self.low_memory:
            return 1
        values = self.vae.config.block_out_channels[0] * pixels
        return max(1, VAE_VALUES // values)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "b tokens d"]:
        """Last hidden states of prompts padded to the tokenizer's length (pipeline.py:373-381).

        Those of the last prompts are remembered.
        """
        return self._embedded.get(list(prompts), partial(self._embed, prompts))

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        states: Tensor = self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state
        return states

    def noise(
        self, z: Float[Tensor, "b c lh lw"], t: int | Tensor, text: Tensor
    ) -> Float[Tensor, "b c lh lw"]:
        """eps_theta(z_t, t) without guidance, in z's precision.

        Args:
            z: latents, sample by sample.
            t: one timestep, or one for each latent.
            text: embeddings, one for each sample.
        """
        return self._forward(z, t, text)[0].clone()

    def noise_and_features(
        self, z: Float[Tensor, "b c lh lw"], t: int, text: Tensor
    ) -> tuple[Float[Tensor, "b c lh lw"], Float[Tensor, "b f fh fw"]]:
        """eps_theta(z_t, t) and F(z_t) before resizing, from one forward, in z's precision.

        Both are valid until the next forward.
        """
        eps, features = self._forward(z, t, text)
        return eps, scale_gradient(features.to(z.dtype), self._gradient_scale)

    def replayed(
        self,
        name: Hashable,
        function: Callable[..., tuple[Tensor, ...]],
        inputs: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """function(*inputs), recorded where the UNet's passes are; see `UNetPasses.replayed`."""
        return self._passes.replayed(name, function, inputs)

    @contextmanager
    def mutual_attention(self, samples: Bool[Tensor, " n"], start_layer: int) -> Iterator[None]:
        """Batches hold (unedited, edited) pairs; chosen samples' edited latents attend across.

        Args:
            samples: which of the pairs.
            start_layer: the first self-attention layer concerned, 0 to 15.
        """
        with self._mutual.mutual(samples, start_layer, self.device):
            yield

    @contextmanager
    def adapted(
        self, adapters: Sequence[Adapter] | None, trainable: bool = False
    ) -> Iterator[dict[str, Tensor]]:
        """Sample i's latents pass through adapter i; None runs the plain UNet.

        Args:
            adapters: one for each sample of the batch.
            trainable: whether `adapters.flat`, which holds the matrices, requires gradients.

        Yields:
            The stacked LoRA matrices inside the UNet, views of `adapters.flat`; none where the
            adapters could be added to the weights.

        Raises:
            ValueError: adapters are in use already, or do not fit.
        """
        if adapters is None:
            yield {}
            return
        if self.adapters.in_use:
            raise ValueError(
                "adapters are in use already: leave `adapted` before entering it again"
            )
        alone = all(adapter is adapters[0] for adapter in adapters)
        try:
            merge = self.engine.merge_adapters is True
            summed = merge and self._can_sum(adapters)
            if merge and alone and not trainable:
                self.adapters.merge(adapters[0], self.latent_dtype)
            elif summed and not trainable:
                self.adapters.merge_each(adapters, self.latent_dtype)
            else:
                self.adapters.install(adapters, self.latent_dtype, trainable, summed)
            yield self.adapters.stacks
        finally:
            self.adapters.remove()

    def _can_sum(self, adapters: Sequence[Adapter]) -> bool:
        """Whether W + B A may stand in for W in a pass.

        Checkpoints run blocks again when the pass with other weights is over. Of several adapters
        each sample gets weights of its own, which takes their memory.
        """
        if self.low_memory:
            return False
        return len(adapters) == 1 or self.adapters.can_be_weights(adapters[0])

    def _forward(self, z: Tensor, t: int | Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """eps_theta(z_t, t) in z's precision, and F(z_t) in the UNet's."""
        timestep = t if isinstance(t, Tensor) else self._timesteps[t]
        context = text.repeat_interleave(len(z) // len(text), dim=0)
        model_input = scale_gradient(z, 1 / self._gradient_scale).to(self.dtype)
        output, features = self._passes(model_input, timestep, context)
        output = scale_gradient(output.to(z.dtype), self._gradient_scale)
        return (self._to_eps(output, z, timestep) if self.predicts_v else output), features

    def _to_eps(self, v: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """eps = sqrt(a_t) v + sqrt(1 - a_t) z_t."""
        a = self._alphas[t].to(z.dtype).reshape(-1, 1, 1, 1)
        return a**0.5 * v + (1 - a) ** 0.5 * z

    @torch.no_grad()
    def bottleneck(
        self, z: Float[Tensor, "b c lh lw"], t: int, text: Tensor
    ) -> Float[Tensor, "b s sh sw"]:
        """s_t, the output of the UNet's middle block, in z's precision."""
        kept: list[Tensor] = []
        with self._passes.with_bottleneck(lambda module, args, output: kept.append(output)):
            self._forward(z, t, text)
        return kept[0].to(z.dtype)

    @contextmanager
    def replaced_bottleneck(
        self, s: Float[Tensor, "b s sh sw"], latents: slice = slice(None)
    ) -> Iterator[None]:
        """While active, s stands in for what the middle block makes of the chosen latents.

        Gradients reach s. Passes are not replayed as graphs.
        """
        given = scale_gradient(s, 1 / self._gradient_scale).to(self.dtype)

        def replace(module: object, args: object, output: Tensor) -> Tensor:
            replaced = output.clone()
            replaced[latents] = given
            return replaced

        with self._passes.with_bottleneck(replace):
            yield


def checkpointed(module: torch.nn.Module, *args: object) -> object:
    """Run a block and forget what is in it until its backward; it draws no random numbers."""
    return checkpoint(module, *args, use_reentrant=False, preserve_rng_state=False)
