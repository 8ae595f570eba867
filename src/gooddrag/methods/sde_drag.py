"""SDE-Drag: patches of a noised latent are copied in small moves, and the noise is taken back.

arXiv 2311.01410 (ICLR 2024). No latent is optimised: the picture's latent is noised by random steps
whose latents are kept; a patch round each handle is copied a little nearer to its target; denoising
then re-uses, at each step, the very noise that leads back from one kept latent to the one before,
so that whatever was not touched comes back. Then the next move.

Written from notes on the official code at commit 881364a (cycle_sde.py, utils/drag.py; bench =
sdedrag_dragbench.py), of which nothing is copied, and from what is known of the paper. Places are
(x, y) in whole latent cells here, as there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from gooddrag.backbones.base import Adapter
from gooddrag.backbones.stable_diffusion import StableDiffusion
from gooddrag.events import Phases
from gooddrag.geometry import common_reach
from gooddrag.memory import peak_memory, reset_peak_memory
from gooddrag.methods.cycle_sde import Latent, Levels, perturb, sigma, step_mean, step_noise
from gooddrag.methods.latent_editor import Adapt, LatentEditor
from gooddrag.seeding import generator
from gooddrag.types import DragSample, Edit

Cells = Int[Tensor, "_ 2"]
Draw = Callable[[tuple[int, ...]], Tensor]
"""Gives standard normal numbers of a shape; one for each sample."""


def guidance_scale(k: int, count: int, scale: float) -> float:
    """Of classifier-free guidance when undoing noising step k: 1 + (scale - 1) (k + 1) / (n - 1).

    It ends a little above `scale`, and never is 1 (utils/drag.py:55-60).
    """
    return 1 + (scale - 1) * (k + 1) / (count - 1)


def lora_scale(k: int, count: int, lowest: float) -> float:
    """What the LoRA is multiplied by when undoing noising step k: a cosine from 1 to `lowest`."""
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * (k + 1) / (count - 1))) / 2


def scaled(adapters: Sequence[Adapter] | None, factor: float) -> list[Adapter] | None:
    """Adapters whose matrices' product is multiplied by a factor; those that are one stay one."""
    if adapters is None:
        return None
    made = {
        id(adapter): {
            key: weight * factor if ".lora_B." in key else weight for key, weight in adapter.items()
        }
        for adapter in adapters
    }
    return [made[id(adapter)] for adapter in adapters]


def moves(source: Cells, target: Cells, step_size: float) -> list[tuple[Cells, Cells]]:
    """Where each move takes the patches from and to: steps of about `step_size`, cut off to cells.

    All points share the number of the longest (utils/drag.py:122-130,153-154).

    >>> source, target = torch.tensor([[9, 4]]), torch.tensor([[12, 2]])
    >>> [(a.tolist(), b.tolist()) for a, b in moves(source, target, step_size=2.0)]
    [([[9, 4]], [[10, 3]]), ([[10, 3]], [[12, 2]])]
    """
    d = (target - source).double()
    longest = float(d.norm(dim=1).max())
    few = int(longest / step_size)
    counts = (few, few + 1) if longest > step_size else (1,)
    count = min(counts, key=lambda n: abs(longest / n - step_size))
    return list(pairwise(source + (i / count * d).trunc().long() for i in range(count + 1)))


def copy_and_paste(
    x: Float[Tensor, "c h w"],
    source: Cells,
    target: Cells,
    draw: Draw,
    *,
    r: int,
    alpha: float,
    beta: float,
) -> Float[Tensor, "c h w"]:
    """Target patches become alpha times the source's, sources beta times their own plus noise.

    Point after point, a later one reads what an earlier one wrote; where the two patches of a point
    overlap the target's wins. Patches are squares of at most 2 r cells a side, cut so that both lie
    inside; the last row and column are never reached (utils/drag.py:84-105).
    """
    x = x.clone()
    for (sx, sy), (tx, ty) in zip(source.tolist(), target.tolist(), strict=True):
        left, right = common_reach(sx, tx, r, x.shape[2])
        up, down = common_reach(sy, ty, r, x.shape[1])
        at_source = (..., slice(sy - up, sy + down), slice(sx - left, sx + right))
        at_target = (..., slice(ty - up, ty + down), slice(tx - left, tx + right))
        patch = x[at_source].clone()
        noise = draw((1, *patch.shape))[0].to(x)
        x[at_source] = beta * patch + math.sqrt(1 - beta**2) * noise
        x[at_target] = alpha * patch
    return x


def shrunk_mask(mask: Float[Tensor, "b 1 h w"], size: Sequence[int]) -> Bool[Tensor, "b 1 lh lw"]:
    """The mask at latent size, bicubic with antialiasing, above 128 of 255 (utils/drag.py:146)."""
    small = functional.interpolate(
        (mask > 0).float(), tuple(size), mode="bicubic", antialias=True, align_corners=False
    )
    return (small * 255).round() > 128


@dataclass(frozen=True, kw_only=True)
class SDEDragSettings:
    """Numbers of SDE-Drag.

    Attributes:
        steps, strength: see `Levels`.
        scale: of classifier-free guidance at the highest noise; see `guidance_scale`.
        step_size: of a move, latent cells.
        r: half the side of the patches, latent cells.
        alpha: what patches are multiplied by at their targets.
        beta: share of a patch that stays at its source; the rest is noise.
        lora_scale_min: see `lora_scale`.

    Raises:
        ValueError: a setting out of range.
    """

    steps: int
    strength: float
    scale: float
    step_size: float
    r: int
    alpha: float
    beta: float
    lora_scale_min: float

    def __post_init__(self) -> None:
        if self.step_size <= 0 or self.r < 1 or not -1 <= self.beta <= 1:
            raise ValueError(
                "step_size must be positive, r at least 1 and beta between -1 and 1, "
                f"found step_size={self.step_size}, r={self.r}, beta={self.beta}"
            )


class SDEDrag(LatentEditor):
    """Encode, and for each move: noise, copy and paste, take the noise back; decode.

    Every sample draws its own numbers, by the seed and its name: the posterior's noise, then for
    each move that of the noising steps and of the pasted points, in this order.

    Args:
        backbone: the diffusion model.
        adapt: gives each sample its LoRA, or None.
        settings: numbers.
        fit, empty_mask: see `LatentEditor`.
    """

    def __init__(
        self,
        *,
        backbone: StableDiffusion,
        adapt: Adapt,
        settings: SDEDragSettings,
        fit: str,
        empty_mask: str,
    ) -> None:
        super().__init__(backbone=backbone, adapt=adapt, fit=fit, empty_mask=empty_mask)
        self.settings = settings
        self.levels = Levels(backbone.alphas_cumprod, settings.steps, settings.strength)

    def _edit(self, samples: Sequence[DragSample], seed: int, phases: Phases) -> list[Edit]:
        """The method's table of contents."""
        canvas, backbone = self._canvas(samples), self.backbone
        reset_peak_memory(backbone.device)

        adapters = self.adapt(backbone, samples, phases)
        # without and with the prompt, for each sample's edited and its unedited latent
        text = backbone.embed([prompt for s in samples for prompt in ("", s.prompt) * 2])
        text = text.unflatten(0, (-1, 4))
        draws = [self._draw(sample, seed) for sample in samples]
        mean, std = self._posterior(samples, canvas)
        x = mean + std * torch.cat([draw((1, *mean.shape[1:])) for draw in draws]).to(mean)
        mask = shrunk_mask(self._masks(samples, canvas), x.shape[-2:]).to(x.device)
        ways = [moves(*self._cells(s), self.settings.step_size) for s in samples]

        with phases("drag", max(map(len, ways)) * self.levels.count) as advance:
            for i in range(max(map(len, ways))):
                now = [k for k, way in enumerate(ways) if i < len(way)]
                noised = self._noised(x[now], [draws[k] for k in now])
                pasted = self._pasted(noised[-1], [(*ways[k][i], draws[k]) for k in now])
                own = None if adapters is None else [adapters[k] for k in now]
                for k in reversed(range(self.levels.count)):
                    pasted = self._step_back(pasted, noised, k, mask[now], text[now], own)
                    advance()
                x[now] = pasted
                self._show(pasted, now, i, canvas, phases)

        images = self._decode(x, canvas, phases)
        memory = peak_memory(backbone.device)
        return [
            Edit(image, sample.targets, None, dict(phases.seconds), memory)
            for image, sample in zip(images, samples, strict=True)
        ]

    def _draw(self, sample: DragSample, seed: int) -> Draw:
        """The sample's own numbers."""
        own = generator(seed, "sde_drag", sample.name)
        return lambda shape: torch.randn(shape, generator=own)

    def _cells(self, sample: DragSample) -> tuple[Cells, Cells]:
        """Handles and targets as latent cells, cut off (utils/drag.py:119-120)."""
        size = self.backbone.pixels_per_latent
        return (sample.handles.cpu() / size).long(), (sample.targets.cpu() / size).long()

    def _noised(self, x: Latent, draws: Sequence[Draw]) -> list[Latent]:
        """x at every level, from the lowest on."""
        found = [x]
        for k in range(self.levels.count):
            noise = torch.cat([draw((1, *x.shape[1:])) for draw in draws]).to(x)
            found.append(perturb(found[-1], noise, *self.levels.up(k)))
        return found

    def _pasted(self, x: Latent, moves: Sequence[tuple[Cells, Cells, Draw]]) -> Latent:
        """Each sample's latent with its patches moved."""
        s = self.settings
        return torch.stack(
            [
                copy_and_paste(z, *move, r=s.r, alpha=s.alpha, beta=s.beta)
                for z, move in zip(x, moves, strict=True)
            ]
        )

    @torch.no_grad()
    def _step_back(
        self,
        x: Latent,
        noised: Sequence[Latent],
        k: int,
        mask: Bool[Tensor, "b 1 h w"],
        text: Float[Tensor, "b four tokens d"],
        adapters: Sequence[Adapter] | None,
    ) -> Latent:
        """Undo noising step k with the noise that undoes it for the unedited latent.

        What the mask does not free is the unedited latent of the level that is reached
        (utils/drag.py:72-81).
        """
        s, before, after = self.settings, noised[k + 1], noised[k]
        inputs = torch.stack((x, x, before, before), dim=1).flatten(0, 1)
        with self.backbone.adapted(
            scaled(adapters, lora_scale(k, len(noised) - 1, s.lora_scale_min))
        ):
            eps = self.backbone.noise(inputs, self.levels.t[k + 1], text.flatten(0, 1))
        plain, prompted = eps.unflatten(0, (-1, 2, 2)).unbind(dim=2)
        eps = plain + guidance_scale(k, self.levels.count, s.scale) * (prompted - plain)
        alphas = self.levels.down(k)
        w = step_noise(before, eps[:, 1], after, *alphas)
        x = step_mean(x, eps[:, 0], *alphas) + sigma(*alphas) * w
        return torch.where(mask, x, after)
