"""What a drag starts from: the point pairs on the grid, and the unedited branch to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gooddrag.backbones.base import Backbone
from gooddrag.ddim import Timesteps, move
from gooddrag.geometry import Canvas, product_patches, sample_patches
from gooddrag.types import DragSample

Latent = Float[Tensor, "b c h w"]


@dataclass(frozen=True)
class Pairs:
    """The point pairs of a batch of samples, one after another, (row, column) on the grid."""

    sample: Int[Tensor, " n"]
    start: Float[Tensor, "n 2"]
    targets: Float[Tensor, "n 2"]

    @classmethod
    def of(
        cls, samples: Sequence[DragSample], canvas: Canvas, rounding: str, device: torch.device
    ) -> Pairs:
        """Put the samples' points on the grid."""
        owner = [torch.full((len(s.handles),), i) for i, s in enumerate(samples)]
        start = [canvas.to_grid(s.handles, rounding) for s in samples]
        targets = [canvas.to_grid(s.targets, rounding) for s in samples]
        return cls(*(torch.cat(part).to(device) for part in (owner, start, targets)))


@dataclass(frozen=True)
class Reference:
    """What is kept of the unedited branch at one dragged step.

    Attributes:
        patches: F_{Omega(p_i^0, r1)}(z_t^0) as the loss samples them, and which of their cells are
            valid.
        vectors: F_{p_i^0}(z_t^0).
        z_prev: z_{t-1}^0.
    """

    patches: tuple[Float[Tensor, "n f s s"], Bool[Tensor, "n s s"]]
    vectors: Float[Tensor, "n f"]
    z_prev: Latent


@dataclass(frozen=True)
class Unedited:
    """The unedited branch at one dragged step, whatever will be dragged.

    Attributes:
        features: F(z_t^0), in the precision of the network.
        z_prev: z_{t-1}^0.
    """

    features: Float[Tensor, "b f h w"]
    z_prev: Latent

    def to_host(self) -> Unedited:
        """With the features in the CPU's memory, where they may stay."""
        return replace(self, features=self.features.cpu())

    def reference(self, pairs: Pairs, canvas: Canvas, r1: int) -> Reference:
        """What a drag of these pairs will read, on the device."""
        features = self.features.to(self.z_prev)
        patches = product_patches(features, pairs.sample, pairs.start, r1, canvas)
        vectors, _ = sample_patches(features, pairs.sample, pairs.start, 0, canvas)
        return Reference(patches, vectors[:, :, 0, 0], self.z_prev)


def unedited_pass(
    backbone: Backbone,
    z_T: Latent,
    text: Float[Tensor, "b tokens d"],
    times: Timesteps,
    steps: int,
    advance: Callable[[], object] = lambda: None,
) -> Iterator[Unedited]:
    """Denoise z_T unedited through the dragged steps.

    Gradients are tracked, though never used, so that the forward runs the very kernels of the
    drag: at the first gradient step z_t^k is z_t^0, and a mask term of rounding noise instead of
    0 would push every frozen latent by a full step of Adam.
    """
    z = z_T
    for t in times.descending[:steps]:
        unedited = unedited_at(backbone, z, t, text, times)
        yield unedited
        z = unedited.z_prev
        advance()


def unedited_at(
    backbone: Backbone,
    z: Latent,
    t: int,
    text: Float[Tensor, "b tokens d"],
    times: Timesteps,
) -> Unedited:
    """One step of it, from z_t^0."""
    with torch.enable_grad():
        eps, features = backbone.noise_and_features(z.detach().requires_grad_(), t, text)
        z_prev = move(z, eps, *times.down(t)).detach()
    # copied, since the next forward may overwrite it
    return Unedited(features.detach().to(backbone.dtype, copy=True), z_prev)


def reference_pass(
    backbone: Backbone,
    z_T: Latent,
    text: Float[Tensor, "b tokens d"],
    times: Timesteps,
    steps: int,
    pairs: Pairs,
    canvas: Canvas,
    r1: int,
) -> list[Reference]:
    """What a drag will read of the unedited branch; only patches that are read stay."""
    walk = unedited_pass(backbone, z_T, text, times, steps)
    return [unedited.reference(pairs, canvas, r1) for unedited in walk]


def reference_at(
    backbone: Backbone,
    z: Latent,
    t: int,
    text: Float[Tensor, "b tokens d"],
    times: Timesteps,
    pairs: Pairs,
    canvas: Canvas,
    r1: int,
) -> Reference:
    """What the drag will read at one step, of z_t^0."""
    return unedited_at(backbone, z, t, text, times).reference(pairs, canvas, r1)
