"""LoRA of one picture at a time, many at once, inside one UNet.

PEFT puts a LoRA layer round each projection. Its two matrices are replaced by stacks of matrices,
one per sample, so that a batch of different pictures runs through one UNet, each with its own
adapter. Adapters that are not trained any more become weights instead: one W + B A for all, or one
for each sample. An adapter outside the UNet is a plain dict (see `base.Adapter`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from gooddrag.backbones.adapter_layers import AddedAdapter, PerSampleLinear, PerSampleWeights
from gooddrag.backbones.base import Adapter
from gooddrag.backbones.precision import scale_gradient


def modules_of(adapter: Adapter) -> list[str]:
    """The names of the modules that an adapter changes."""
    return sorted({key.rsplit(".lora_", 1)[0] for key in adapter})


def attention_projections(unet: UNet2DConditionModel, targets: Sequence[str]) -> list[str]:
    """Names of the UNet's modules that end in one of the targets, say "to_q" or "to_out.0".

    Raises:
        ValueError: a target names no module.
    """
    names = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear)]
    names = [name.removesuffix(".base_layer") for name in names]
    for target in targets:
        if not any(name.endswith(f".{target}") for name in names):
            raise ValueError(f"no layer of the UNet is called {target!r}: check adapt.targets")
    return [name for name in names if any(name.endswith(f".{target}") for target in targets)]


def initial_adapter(
    unet: UNet2DConditionModel, rank: int, targets: Sequence[str], generator: torch.Generator
) -> Adapter:
    """lora_A ~ N(0, 1 / rank) (that is its standard deviation), lora_B = 0 (lora_utils.py:188).

    Raises:
        ValueError: a rank that no projection can have, of which memory might not hold the matrices.
    """
    names = attention_projections(unet, targets)
    widest = max(min(base_layer(unet, name).weight.shape) for name in names)
    if rank > widest:
        raise ValueError(
            f"adapt.rank is {rank}, but the widest projection that is adapted has {widest} "
            f"channels: take adapt.rank={widest} or less"
        )
    adapter: Adapter = {}
    for name in names:
        out_features, in_features = base_layer(unet, name).weight.shape
        adapter[f"{name}.lora_A.weight"] = (
            torch.randn(rank, in_features, generator=generator) / rank
        )
        adapter[f"{name}.lora_B.weight"] = torch.zeros(out_features, rank)
    return adapter


def base_layer(unet: UNet2DConditionModel, name: str) -> nn.Linear | nn.Conv2d:
    """The projection itself, with or without a LoRA layer round it."""
    module = unet.get_submodule(name)
    return module.get_base_layer() if isinstance(module, LoraLayer) else module


class AdapterBank:
    """The adapters inside one UNet: added to its weights, or as layers beside them.

    Args:
        unet: frozen.
        gradient_scale: what gradients reaching the LoRA weights are multiplied by.

    Attributes:
        flat: all matrices of all samples one after another, for one optimiser step over all of
            them, or all weights that they became; None where all samples share theirs.
        summed: the matrices are added to the weights at each pass, W + B A, and trained so.
        own: `flat` holds weights, W + B A for each sample.
        save_memory: keep the weights of before on the CPU.
    """

    def __init__(self, unet: UNet2DConditionModel, gradient_scale: float) -> None:
        self.unet = unet
        self.dtype = unet.dtype  # looked up once: diffusers walks through all modules to tell it
        self.gradient_scale = gradient_scale
        self.modules: list[str] = []
        self.flat: nn.Parameter | None = None
        self.summed = self.own = False
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[bool, tuple[dict[str, tuple[int, ...]], nn.Parameter]] = {}
        self._before: dict[str, Tensor] = {}
        self._owning: list[str] = []  # layers that read weights of each sample
        self.save_memory = False

    @property
    def in_use(self) -> bool:
        """Whether the UNet is another one than without adapters."""
        return bool(self._before) or self.flat is not None

    @property
    def stacks(self) -> dict[str, Tensor]:
        """The matrices in use, (samples, out, in) by the adapters' keys."""
        return {} if self.flat is None or self.own else self._split(self.flat.detach())

    def merge(self, adapter: Adapter, dtype: torch.dtype) -> None:
        """Add an adapter to the UNet's weights, W + B A, until `remove`.

        Args:
            adapter: for the whole batch.
            dtype: to add in; the sum is rounded to the weights' own.

        Raises:
            ValueError: the adapter does not fit the UNet.
        """
        for name, total in self._sums([adapter], dtype):
            weight = base_layer(self.unet, name).weight.detach()
            self._before[name] = weight.to("cpu" if self.save_memory else weight.device, copy=True)
            weight.copy_(total[0].view_as(weight))

    def merge_each(self, adapters: Sequence[Adapter], dtype: torch.dtype) -> None:
        """Give each sample weights of its own, W + B A, until `remove`.

        One product then does what takes three beside the weights, forward and backward. It takes
        the memory of all adapted weights for each sample.

        Args:
            adapters: one for each sample, of `can_be_weights`.
            dtype: see `merge`.

        Raises:
            ValueError: the adapters differ in their layers, or do not fit the UNet.
        """
        sums = self._sums(adapters, dtype)
        weights = {name: total.to(self.dtype) for name, total in sums}
        self.flat, self.own = self._put(weights, self.dtype, own=True), True
        self._take_own(modules_of(adapters[0]))

    def _take_own(self, names: Sequence[str]) -> None:
        """Let layers read weights of each sample, which `hand_out` gives them."""
        self._owning = list(names)
        for name in names:
            base_layer(self.unet, name).__class__ = PerSampleWeights

    def can_be_weights(self, adapter: Adapter) -> bool:
        """Whether it changes nothing but linear layers, of which each sample may have its own."""
        present = dict(self.unet.named_modules())
        layers = [present.get(name) for name in modules_of(adapter)]
        bases = [x.get_base_layer() if isinstance(x, LoraLayer) else x for x in layers]
        return all(type(base) is nn.Linear for base in bases)

    @torch.no_grad()
    def _sums(
        self, adapters: Sequence[Adapter], dtype: torch.dtype
    ) -> Iterator[tuple[str, Float[Tensor, "samples out in"]]]:
        """W + B A of each sample, layer by layer."""
        for name, down, up in self._matrices(adapters):
            weight = base_layer(self.unet, name).weight
            down, up = (matrices.to(weight.device, dtype) for matrices in (down, up))
            yield name, weight.flatten(1).to(dtype) + (up @ down)

    def _matrices(self, adapters: Sequence[Adapter]) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Each layer's name, and the adapters' A and B in it, which have to fit."""
        if any(set(adapter) != set(adapters[0]) for adapter in adapters):
            raise ValueError("adapters of one batch must change the same layers")
        present = dict(self.unet.named_modules())
        for name in modules_of(adapters[0]):
            _check_name(name, present)
            keys = [f"{name}.lora_{part}.weight" for part in "AB"]
            down, up = (torch.stack([adapter[key] for adapter in adapters]) for key in keys)
            _check_shapes(name, base_layer(self.unet, name), down[0], up[0])
            yield name, down, up

    def install(
        self,
        adapters: Sequence[Adapter],
        dtype: torch.dtype,
        trainable: bool = False,
        summed: bool = False,
    ) -> None:
        """Let sample i pass through adapter i, until `remove`.

        Args:
            adapters: one for each sample.
            dtype: of the stacked matrices.
            trainable: whether they require gradients.
            summed: add the matrices to the weights at each pass instead of passing through both,
                which several adapters have to be able to (`can_be_weights`). A gradient of W + B A
                costs less than the four thin products beside every layer.

        Raises:
            ValueError: the adapters differ in their layers, or do not fit the UNet.
        """
        stacks: dict[str, Tensor] = {}
        for name, down, up in self._matrices(adapters):
            stacks |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        place = self._put(stacks, dtype, own=False)
        names = modules_of(adapters[0])
        if not summed:
            if names != self.modules:
                self._wrap(names)
            self.unet.enable_adapters()
        elif len(adapters) > 1:
            self._take_own(names)
        place.requires_grad_(trainable)
        self.flat, self.summed = place, summed

    def hand_out(self, flat: Tensor) -> dict[str, Tensor]:
        """Give each layer its part of `flat`, in the UNet's precision; for one pass.

        Returns:
            W + B A by the name of the UNet's parameter W, for a pass that uses them in its place;
            nothing where the layers have what is theirs.
        """
        if self.own:
            return self._give(self._split(flat))
        matrices = self._split(scale_gradient(flat, self.gradient_scale).to(self.dtype))
        if self.summed:
            sums = {name: self._sum(name, matrices) for name in modules_of(matrices)}
            return self._give(sums) if self._owning else self._in_place_of_weights(sums)
        for key, stack in matrices.items():
            name, part, _ = key.rsplit(".", 2)
            getattr(self.unet.get_submodule(name), part)["default"].weight = stack
        return {}

    def _sum(self, name: str, matrices: Mapping[str, Tensor]) -> Float[Tensor, "samples out in"]:
        """W + B A of each sample."""
        weight = base_layer(self.unet, name).weight.flatten(1)
        down, up = (matrices[f"{name}.lora_{part}.weight"] for part in "AB")
        if len(up) == 1:
            return torch.addmm(weight, up[0], down[0])[None]
        return torch.baddbmm(weight.expand(len(up), -1, -1), up, down)

    def _give(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name, own in weights.items():
            base_layer(self.unet, name).own = own
        return {}

    def _in_place_of_weights(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The only sample's W + B A by the name of the UNet's parameter."""
        found = {}
        for name, total in sums.items():
            wrapped = isinstance(self.unet.get_submodule(name), LoraLayer)
            key = f"{name}.base_layer.weight" if wrapped else f"{name}.weight"
            found[key] = total.view_as(base_layer(self.unet, name).weight)
        return found

    def forget_places(self) -> None:
        """Let the memory of the last adapters go; graphs that read it have to go, too."""
        self._places.clear()

    def remove(self) -> None:
        """Back to the UNet's own weights; what training left is let go."""
        for name, weight in self._before.items():
            with torch.no_grad():
                base_layer(self.unet, name).weight.copy_(weight)
        self._before = {}
        for name in self._owning:
            layer = base_layer(self.unet, name)
            layer.__class__ = nn.Linear
            layer.__dict__.pop("own", None)
        self._owning = []
        if self.modules:
            self.unet.disable_adapters()
        if self.flat is not None:
            self.flat.requires_grad_(False).grad = None
        self.flat, self.summed, self.own = None, False, False

    def unwrap(self) -> None:
        """Take the LoRA layers out of the UNet altogether."""
        if self.modules:
            self.unet.unload_lora()
            self.modules = []

    def _put(self, stacks: dict[str, Tensor], dtype: torch.dtype, own: bool) -> nn.Parameter:
        """Write the stacks where the last of their shapes were: CUDA graphs read them there.

        Matrices, and the weights that they became, take turns and have a place each.
        """
        shapes = {key: tuple(stack.shape) for key, stack in stacks.items()}
        flat = torch.cat([stack.flatten() for stack in stacks.values()])
        before, place = self._places.get(own, (None, None))
        if place is not None and shapes == before and place.dtype == dtype:
            with torch.no_grad():
                place.copy_(flat)
        else:
            place = nn.Parameter(flat.to(self.unet.device, dtype), requires_grad=False)
        self._places[own], self._shapes = (shapes, place), shapes
        return place

    def _split(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([math.prod(shape) for shape in self._shapes.values()])
        named = zip(self._shapes.items(), parts, strict=True)
        return {key: part.view(shape) for (key, shape), part in named}

    def _wrap(self, names: list[str]) -> None:
        self.unwrap()
        with torch.random.fork_rng(devices=[]):
            self.unet.add_adapter(LoraConfig(r=1, lora_alpha=1, target_modules=names))
        self.unet.requires_grad_(False)
        for name in names:
            layer = self.unet.get_submodule(name)
            # the matrices follow the precision of what passes through them
            layer.cast_input_dtype_enabled = False
            layer.lora_variant["default"] = AddedAdapter
            for part in ("lora_A", "lora_B"):
                getattr(layer, part)["default"] = PerSampleLinear()
        self.modules = names


def _check_name(name: str, present: Mapping[str, nn.Module]) -> None:
    if name not in present:
        raise ValueError(
            f"the LoRA changes the layer {name}, which this UNet does not have: "
            "it was made for another model"
        )


def _check_shapes(name: str, layer: nn.Module, down: Tensor, up: Tensor) -> None:
    out_features, in_features = layer.weight.shape[:2]  # type: ignore[index]
    if (up.shape[0], down.shape[1]) != (out_features, in_features) or down.shape[0] != up.shape[1]:
        raise ValueError(
            f"the LoRA's matrices for {name} have shapes {tuple(up.shape)} and "
            f"{tuple(down.shape)}, the layer is {out_features} x {in_features}: "
            "it was made for another model"
        )


def unstack(stacks: Mapping[str, Tensor]) -> list[Adapter]:
    """The adapters of each sample, float32 (float64 stays) on the CPU."""
    read = {key: stack.cpu() for key, stack in stacks.items()}  # each copy waits for the device
    count = len(next(iter(read.values())))
    return [{key: stack[i].clone() for key, stack in read.items()} for i in range(count)]
