"""GoodDrag from a warped picture: what a warp can do needs no gradients, what it cannot gets few.

This project's own. The walk of an edit:

1. The PICTURE is warped so that every handle lies at its target, in several ways (warps.py), and
   the model is asked which of them it finds likely, where they have changed it (held.py).
2. Picture and warp get the same noise. In every step from there on the latent is the noisy source's
   outside the mask, and for a while the noisy warp's inside it, holes excepted: long if the warp is
   likely, briefly if it is not. Then the model has its way, its attention on the source.
3. An unlikely warp is mended by GoodDrag's alternation once it is let go: the loss asks for the
   original patches at the targets from the first drag operation on.
4. Outside the mask the picture is the source's, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from gooddrag.drag import DragOptimization
from gooddrag.events import Phases
from gooddrag.geometry import Canvas, latent_mask
from gooddrag.memory import peak_memory, reset_peak_memory
from gooddrag.methods.held import HeldDenoising, beside_first, soft_inside, surprise
from gooddrag.methods.latent_drag import LatentDrag
from gooddrag.reference import Pairs, reference_at
from gooddrag.seeding import generator
from gooddrag.types import DragSample, Edit, Tracking

Latent = Float[Tensor, "b c h w"]
Images = Float[Tensor, "b 3 height width"]
Warp = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class WarpSettings:
    """How a warp is chosen and held.

    Attributes:
        judged_at: timesteps at which the model is asked how likely a warp is.
        likely: a warp is likely if it surprises the model at most this many times as much as the
            source does, inside the mask.
        held_likely, held_unlikely: part of the denoising through which a warp is held.
        edge: pixels inside the mask over which the source becomes the edit.
    """

    judged_at: Sequence[int]
    likely: float
    held_likely: float
    held_unlikely: float
    edge: int

    def __post_init__(self) -> None:
        for name in ("held_likely", "held_unlikely"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"method.{name} is a part, from 0 to 1, found {getattr(self, name)}"
                )
        if not self.judged_at or self.edge < 0:
            raise ValueError(
                "method.judged_at needs a timestep and method.edge cannot be negative, found "
                f"{list(self.judged_at)} and {self.edge}"
            )


class WarpedOptimization(DragOptimization):
    """The dragging of a batch of samples from warped latents, handles at their targets.

    Samples whose warp is likely have arrived, and are not dragged.

    Args:
        denoising: of the batch.
        schedule: as given; if all are likely there is none.
        parts: see `DragOptimization`.
    """

    def __init__(self, *, denoising: HeldDenoising, schedule: Sequence[int], **parts: Any) -> None:
        needed = [] if denoising.likely.all() else schedule
        super().__init__(denoising=denoising, schedule=needed, **parts)
        with torch.no_grad():
            self.z.copy_(denoising.noisy(denoising.warped, 0))
        self.handles = self.pairs.targets.clone()
        self.seen = self.handles.cpu()
        for i, position in enumerate(self._positions()):
            self.trajectories[i].trackings.append(Tracking(0, self.t, 0, *position))
            if denoising.likely[i]:
                self.stops.end(i, "arrived", 0)


class WarpedDrag(LatentDrag):
    """Warp, choose, noise; drag and denoise alternately; decode.

    Each sample's noise is its own, by the call's seed and its name.

    Args:
        warps: ways to warp a picture, by name; see warps.py.
        warping: how one is chosen and held.
        parts: see `LatentDrag`.

    Raises:
        ValueError: no warp, no such timestep, or drag operations while a warp is still held.
    """

    def __init__(self, *, warps: Mapping[str, Warp], warping: WarpSettings, **parts: Any) -> None:
        super().__init__(**parts)
        self.warps, self.warping = list(warps.values()), warping
        last = len(self.backbone.alphas_cumprod) - 1
        if not self.warps or not all(0 <= t <= last for t in warping.judged_at):
            raise ValueError(
                f"editor.warps needs a warp, and method.judged_at timesteps from 0 to {last}, "
                f"found {list(warps)} and {list(warping.judged_at)}"
            )
        self._check_held()

    def _check_held(self) -> None:
        """Refuse drag operations whose cells would be put back to the warp."""
        held, steps = self.warping.held_unlikely, len(self.times.descending)
        first = next((step for step, count in enumerate(self.schedule) if count), steps)
        if first / steps < held:
            raise ValueError(
                f"method.held_unlikely={held} would undo the first drag operations, at step "
                f"{first + 1} of {steps}: take at most {100 * first // steps / 100}, or raise "
                "method.after"
            )

    def _edit(self, samples: Sequence[DragSample], seed: int, phases: Phases) -> list[Edit]:
        """The method's table of contents."""
        canvas = self._canvas(samples)
        self._check_radius(canvas)
        backbone = self.backbone
        reset_peak_memory(backbone.device)

        adapters = self.adapt(backbone, samples, phases)
        text = backbone.embed([sample.prompt for sample in samples])
        pairs = Pairs.of(samples, canvas, self.grid_rounding, backbone.device)

        with backbone.adapted(adapters):
            with phases("invert", 1) as advance:
                denoising = self._start(samples, seed, text, canvas)
                advance()

            drag = self._mend(denoising, pairs, canvas, phases)

            z_0 = self._denoise_rest(drag, canvas, phases)

        images = self._composed(samples, self._decode(z_0, canvas, phases), canvas)
        memory = peak_memory(backbone.device)
        return [
            Edit(image, trajectory.handles, trajectory, dict(phases.seconds), memory)
            for image, trajectory in zip(images, drag.trajectories, strict=True)
        ]

    def _start(
        self, samples: Sequence[DragSample], seed: int, text: Tensor, canvas: Canvas
    ) -> HeldDenoising:
        """Warp, choose a warp for each sample, and say how long it is held."""
        backbone, masks = self.backbone, self._masks(samples, canvas)
        pictures, holes = self._candidates(samples, masks, canvas)
        z_0 = backbone.encode(pictures)[0].unflatten(0, (len(samples), -1))
        source, warps = z_0[:, 0], z_0[:, 1:]
        mask = latent_mask(masks, canvas.grid, z_0.shape[-2:]).to(z_0)
        judged_at, times = self.warping.judged_at, self.times
        eps = self._noise(samples, seed, (1 + len(judged_at), *z_0.shape[2:])).to(z_0)
        losses = surprise(backbone, z_0, eps[:, 1:], text, times, judged_at)
        changed = (warps - source[:, None]).square().sum(dim=2) * mask
        best = beside_first(losses, changed).argmin(dim=1)
        chosen = torch.arange(len(samples), device=best.device), best
        likely = beside_first(losses, mask)[chosen] <= self.warping.likely

        parts = losses.new_tensor([self.warping.held_unlikely, self.warping.held_likely])
        held = parts[likely.long()]
        cells = functional.max_pool2d(holes, backbone.pixels_per_latent)
        free = cells.unflatten(0, (len(samples), -1)).to(z_0)[chosen] > 0
        until = torch.where(free, 0.0, held[:, None, None, None].to(z_0))
        return HeldDenoising(
            backbone=backbone,
            text=text,
            times=times,
            attention=self.attention,
            source=source,
            warped=warps[chosen],
            eps=eps[:, 0],
            mask=mask,
            until=until,
            likely=likely.cpu(),
        )

    def _noise(
        self, samples: Sequence[DragSample], seed: int, shape: Sequence[int]
    ) -> Float[Tensor, "b ..."]:
        """Each sample's own, by seed and name."""
        draws = (generator(seed, "warped_drag", sample.name) for sample in samples)
        return torch.stack([torch.randn(*shape, generator=draw) for draw in draws])

    def _candidates(
        self, samples: Sequence[DragSample], masks: Float[Tensor, "b 1 ph pw"], canvas: Canvas
    ) -> tuple[Float[Tensor, "pictures 3 ph pw"], Float[Tensor, "warps 1 ph pw"]]:
        """On the canvas each source before its warps, and where nothing came to these: 1 or 0.

        Warps are calculated on the device where that has float64, as CUDA's have.
        """
        cuda = self.backbone.device.type == "cuda"
        device = self.backbone.device if cuda else torch.device("cpu")
        pictures, holes = [], []
        for sample, mask in zip(samples, canvas.crop(masks)[:, 0] > 0, strict=True):
            given = (sample.image, mask, sample.handles, sample.targets)
            image, *where = (x.to(device) for x in given)
            pictures.append(image)
            with device:  # what a warp makes lies there, too
                warped = [warp(image, *where) for warp in self.warps]
            pictures += [picture for picture, _ in warped]
            holes += [hole for _, hole in warped]
        return canvas.pad(torch.stack(pictures)), canvas.pad(torch.stack(holes)[:, None].float())

    def _mend(
        self, denoising: HeldDenoising, pairs: Pairs, canvas: Canvas, phases: Phases
    ) -> DragOptimization:
        """The drag operations; where no sample needs any, there are no such phases."""
        unedited = denoising.noisy(denoising.source, 0)
        if denoising.likely.all() or not self.schedule:
            return self._drag(unedited, denoising.mask, pairs, {}, denoising, canvas, phases)
        steps = [step for step, count in enumerate(self.schedule) if count]
        with phases("reference", len(steps)) as advance:
            references = {}
            for step in steps:  # of the noisy source
                z, t = denoising.noisy(denoising.source, step), self.times.descending[step]
                parts = denoising.text, self.times, pairs, canvas, self.supervision.r1
                references[step] = reference_at(self.backbone, z, t, *parts)
                advance()
        with phases("drag", sum(self.schedule)):
            return self._drag(
                unedited, denoising.mask, pairs, references, denoising, canvas, phases
            )

    def _optimization(self, **parts: Any) -> DragOptimization:
        return WarpedOptimization(**parts)

    def _composed(
        self, samples: Sequence[DragSample], images: Images, canvas: Canvas
    ) -> Float[Tensor, "b 3 height width"]:
        """The edit inside the mask, the source outside it; of an absent mask all is inside."""
        inside = soft_inside(canvas.crop(self._masks(samples, canvas)), self.warping.edge)
        source = torch.stack([sample.image for sample in samples])
        return torch.where(inside > 0, source + inside * (images - source), source)
