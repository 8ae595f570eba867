"""A drag in one step: warp the inverted latent like a sheet of rubber, and denoise it.

After FastDrag (arXiv 2405.15769), written from what is known of the paper, whose full text was not
at hand; no code of it was used.

The paper's: the inverted latent is warped once, without optimisation (its latent warpage
function); how far a cell goes with a handle falls from 1 at the handle to 0 at a circle round the
editable region, and several handles are weighted by inverse distance; cells that are left empty are
interpolated from the nearest ones in four directions (bilateral nearest neighbour interpolation);
the sampling attends to the unedited picture.
Not the paper's: DDIM in place of the few steps of a latent consistency model, whose weights the
backbones here do not have; keys and values come from the unedited latent denoised alongside, not
from the inversion; where two cells go to one place, the one that goes farther wins; nothing is
moved out of the editable region.

Places are (row, column) in latent cells, whose centres are whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gooddrag import ddim
from gooddrag.backbones.stable_diffusion import StableDiffusion
from gooddrag.denoising import MutualAttention, PairedDenoising
from gooddrag.events import Phases
from gooddrag.memory import peak_memory, reset_peak_memory
from gooddrag.methods.latent_editor import Adapt, LatentEditor
from gooddrag.types import DragSample, Edit


def circle_round(
    region: Bool[Tensor, "h w"], handles: Float[Tensor, "n 2"]
) -> tuple[Float[Tensor, " 2"], Float[Tensor, ""]]:
    """Centre and radius of the circle round the region's bounding box, wide enough for handles."""
    cells = region.nonzero().to(handles)
    low, high = cells.amin(dim=0), cells.amax(dim=0)
    centre = (low + high) / 2
    farthest = (handles - centre).norm(dim=1).max()
    return centre, torch.maximum((high - low).norm() / 2, farthest)


def stretch(
    cells: Float[Tensor, "k 2"],
    handle: Float[Tensor, " 2"],
    centre: Float[Tensor, " 2"],
    radius: Float[Tensor, ""],
) -> Float[Tensor, " k"]:
    """lambda_j = |q_j - p_j| / |q_j - s|, q_j where the ray from s through p_j leaves the circle.

    1 at the handle s, 0 on the circle and beyond it.
    """
    away = cells - handle
    distance = away.norm(dim=1)
    ray = torch.where(distance[:, None] > 0, away / distance[:, None], 0.0)
    # |s + reach ray - centre| = radius
    along = ray @ (handle - centre)
    inside = (radius**2 - (handle - centre).square().sum()).clamp(min=0)
    reach = -along + (along**2 + inside).sqrt()
    return torch.where(distance > 0, 1 - distance / reach, 1.0).clamp(min=0)


def displacements(
    cells: Float[Tensor, "k 2"],
    handles: Float[Tensor, "n 2"],
    targets: Float[Tensor, "n 2"],
    centre: Float[Tensor, " 2"],
    radius: Float[Tensor, ""],
) -> Float[Tensor, "k 2"]:
    """v_j = sum_i w_ij lambda_ij (e_i - s_i), w_ij proportional to 1 / |p_j - s_i|."""
    factors = torch.stack([stretch(cells, s, centre, radius) for s in handles], dim=1)
    nearness = 1 / torch.cdist(cells, handles).clamp(min=1e-6)
    weights = nearness / nearness.sum(dim=1, keepdim=True)
    return (weights * factors) @ (targets - handles)


def relocate(
    z: Float[Tensor, "c h w"],
    region: Bool[Tensor, "h w"],
    cells: Float[Tensor, "k 2"],
    v: Float[Tensor, "k 2"],
) -> tuple[Float[Tensor, "c h w"], Bool[Tensor, "h w"]]:
    """z'(p_j + v_j) = z(p_j) for the region's cells, v_j rounded to whole ones.

    Returns:
        z', and which of the region's cells nothing went to.
    """
    width = region.shape[1]
    order = v.norm(dim=1).argsort(stable=True)  # the one that goes farthest comes last
    start = cells[order].long()
    end = start + v[order].round().long()
    limits = torch.tensor(region.shape, device=z.device)
    stays = ((end >= 0) & (end < limits)).all(dim=1)
    stays &= region[tuple(end.clamp(min=0).minimum(limits - 1).T)]
    start, end = start[stays], end[stays]
    rank = torch.arange(len(end), device=z.device)
    goal = end[:, 0] * width + end[:, 1]
    winner = torch.full((region.numel(),), -1, device=z.device)
    winner = winner.scatter_reduce(0, goal, rank, "amax").view_as(region)
    filled = winner >= 0
    moved = z.clone()
    moved[:, filled] = z[:, *start[winner[filled]].T]
    return moved, region & ~filled


def fill(z: Float[Tensor, "c h w"], empty: Bool[Tensor, "h w"]) -> Float[Tensor, "c h w"]:
    """Empty cells take the mean of the nearest others above, below, left and right.

    Weighted by inverse distance; a cell that sees none keeps its value.
    """
    total, weights = torch.zeros_like(z), torch.zeros_like(z[0])
    for axis in (0, 1):
        for back in (False, True):
            seen, known = (x.flip(1 + axis) if back else x for x in (z, ~empty[None]))
            place = torch.arange(z.shape[1 + axis], device=z.device)
            place = place[:, None] if axis == 0 else place
            nearest = torch.where(known[0], place, -1).cummax(dim=axis).values
            value = seen.gather(1 + axis, nearest.clamp(min=0).expand_as(z))
            weight = torch.where(nearest >= 0, 1 / (place - nearest).clamp(min=1), 0.0)
            value, weight = (x.flip(axis - 2) if back else x for x in (value, weight))
            total, weights = total + weight * value, weights + weight
    return torch.where(empty & (weights > 0), total / weights, z)


def warp(
    z: Float[Tensor, "c h w"],
    mask: Float[Tensor, "1 h w"],
    handles: Float[Tensor, "n 2"],
    targets: Float[Tensor, "n 2"],
) -> Float[Tensor, "c h w"]:
    """Move what the mask frees with the handles, and fill what they leave behind."""
    region = mask[0] > 0
    if not region.any():
        return z
    cells = region.nonzero().to(handles)
    v = displacements(cells, handles, targets, *circle_round(region, handles))
    return fill(*relocate(z, region, cells, v))


class FastDrag(LatentEditor):
    """Invert, warp, denoise beside the unedited latent, decode.

    Args:
        backbone: the diffusion model.
        adapt: gives each sample its LoRA, or None; the paper trains none.
        attention: mutual self-attention while denoising.
        steps: DDIM steps on the whole ladder.
        strength: the part of the ladder that is inverted and denoised.
        fit, empty_mask: see `LatentEditor`.
    """

    def __init__(
        self,
        *,
        backbone: StableDiffusion,
        adapt: Adapt,
        attention: MutualAttention,
        steps: int,
        strength: float,
        fit: str,
        empty_mask: str,
    ) -> None:
        super().__init__(backbone=backbone, adapt=adapt, fit=fit, empty_mask=empty_mask)
        self.attention = attention
        self.times = ddim.Timesteps(backbone.alphas_cumprod, steps, strength)

    def _edit(self, samples: Sequence[DragSample], seed: int, phases: Phases) -> list[Edit]:
        """The method's table of contents; nothing random happens after adaptation."""
        canvas = self._canvas(samples)
        backbone, times = self.backbone, self.times
        reset_peak_memory(backbone.device)

        adapters = self.adapt(backbone, samples, phases)
        text = backbone.embed([sample.prompt for sample in samples])
        z_0 = self._encode(samples, canvas)
        mask = self._mask(samples, canvas, z_0)
        denoising = PairedDenoising(backbone, text, times, self.attention)

        with backbone.adapted(adapters):
            z_T = self._invert(times, adapters, z_0, text, phases)

            with phases("drag", len(samples)) as advance:
                warped = torch.empty_like(z_T)
                for i, sample in enumerate(samples):
                    points = (self._cells(p, z_T) for p in (sample.handles, sample.targets))
                    warped[i] = warp(z_T[i], mask[i], *points)
                    advance()

            every = range(len(times.descending))
            undragged = [-1] * len(samples)
            z_0 = self._denoise(denoising, z_T, warped, every, undragged, canvas, phases)

        images = self._decode(z_0, canvas, phases)
        memory = peak_memory(backbone.device)
        return [
            Edit(image, sample.targets, None, dict(phases.seconds), memory)
            for image, sample in zip(images, samples, strict=True)
        ]

    def _cells(self, points: Float[Tensor, "n 2"], z: Tensor) -> Float[Tensor, "n 2"]:
        """Pixels (x, y) as places among the latent's cells, (row, column)."""
        return (points.flip(-1) + 0.5).to(z) / self.backbone.pixels_per_latent - 0.5
