"""The true handle error: where in the edited picture is the material that was dragged?

By analysis through synthesis, without features. DragWorld renders its scenes from parameters, and
an edit is a step of some of them, so the edited picture is compared with renderings of the scene
along that step, a little beyond it and a little beside it. The parameters that fit best say where
each handle is, to a fraction of a pixel, and its distance from where the truth has it is the error.

Where it applies: to every family and task of DragWorld, for the handles that move, as long as what
was dragged still looks like itself and lies within `reach` of its way. Colours, noise, blur and
compression matter little. What it cannot see: a handle that vanished or was smeared, which `found`
tells; a bend of the object that its parameters do not know, of which the nearest fit is taken; and
which of two copies is meant, of which the better and otherwise the larger one counts. A thing that
should vanish is at its target when it has, since its handle ends where the thing shrank to.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor

from gooddrag.metrics.base import SampleMean, check_sizes
from gooddrag.metrics.scenes import View, Way, nearness, shrink
from gooddrag.world import WorldEdit

KEPT = 64  # worlds whose searches are kept, 2 MB each at 256 x 256
_REWEIGHTINGS = 3  # of a step, for the loss that counts large differences less
_RIDGE = 1e-3  # of the stiffness, so that a scene without any change still has a step


@dataclass(frozen=True, kw_only=True)
class SceneFit:
    """How a scene is fitted; lengths are in picture widths.

    Attributes:
        coarse, fine: sides of the pictures in which is searched and then refined, pixels.
        spacing: of the places on the way that the search starts from, as handles move.
        beyond: how far it goes on before the start and behind the end, as part of the way.
        reach: how far off the way handles may be, along each free parameter.
        tube: width (sigma) of the window along the handles' way in which pictures are compared.
        leverage: a parameter that the edit leaves alone is free if it moves a handle by at least
            this much for each unit.
        stiffness: what a squared offset from the way costs, against the mean difference.
        tolerance: differences up to it count squared, larger ones as they are.
        slopes: steps of the finite differences for the search, in its rounds and in the fine fit.
        starts: places that are followed after the search.
        rounds: of the starts, and of the fine fit.
        likeness: from which on a handle counts as found.
    """

    coarse: int
    fine: int
    spacing: float
    beyond: float
    reach: float
    tube: float
    leverage: float
    stiffness: float
    tolerance: float
    slopes: Sequence[float]
    starts: int
    rounds: Sequence[int]
    likeness: float


@dataclass(frozen=True)
class TrueHandles:
    """Where the handles are.

    Attributes:
        handles: of the handles that should move, (x, y) in pixels, a pixel's centre at its
            half: exactly where the fitted scene has them.
        error: their mean distance from where the truth has them, pixels.
        distance: the same of the unedited scene, pixels.
        way: how far along the way from source (0) to truth (1) they are.
        residual: mean difference of picture and fitted scene in the window, of [0, 1].
        likeness: whether the object is seen where the fit has it, as a correlation: of how the
            picture, and how the fitted scene, differ from the scene with the object away.
        found: whether the likeness suffices.
    """

    handles: Tensor
    error: float
    distance: float
    way: float
    residual: float
    likeness: float
    found: bool


class Search:
    """Finds the handles of one edit of DragWorld in any number of edited pictures.

    What does not depend on the picture is rendered once.
    """

    def __init__(self, world: WorldEdit, fit: SceneFit, device: torch.device) -> None:
        self.fit, self.size = fit, world.source.shape[-1]
        self.way = Way.of(world, fit.beyond, fit.leverage, device)
        mask, self.source = world.mask.to(device), world.source.to(device)
        self.outside = mask[0] == 0
        self.coarse = View.of(self.way, mask, fit.coarse, fit.tube, smooth=True)
        self.fine = View.of(self.way, mask, fit.fine, fit.tube, smooth=False)
        low, high = self.way.limits
        count = ceil((high - low) / fit.spacing) + 1
        self.places = self.way.places(torch.linspace(low, high, count))
        self.scenes, self.slopes = self.coarse.slopes(self.places, fit.slopes[0])
        self.mask = shrink(mask, fit.coarse)[0][self.coarse.window]

    @torch.no_grad()
    def __call__(self, picture: Float[Tensor, "3 h w"]) -> TrueHandles:
        """Where the handles are in a picture, RGB in [0, 1]."""
        picture = self._undrifted(picture)
        fit, small = self.fit, self.coarse.cut(picture)
        places, cost = self._step(self.coarse, self.places, self.scenes, self.slopes, small)
        places = places[cost.argsort()[: fit.starts]]
        for _ in range(fit.rounds[0]):
            around = self.coarse.slopes(places, fit.slopes[1])
            places, _ = self._step(self.coarse, places, *around, small)
        cost = self._cost(self.coarse, self.coarse.render(places) - small, places)
        place, residual = self._refine(places[cost.argmin()][None], picture)
        return self._report(place, residual, small)

    def _undrifted(self, picture: Tensor) -> Tensor:
        """Without the change of colours that the whole picture has, as seen outside the mask."""
        if not self.outside.any():
            return picture
        drift = (picture - self.source)[:, self.outside].median(dim=1).values
        return picture - drift[:, None, None]

    def _refine(self, place: Tensor, picture: Tensor) -> tuple[Tensor, float]:
        """The fine fit from one place on: the best place seen, and its mean difference."""
        large, seen = self.fine.cut(picture), [place]
        for _ in range(self.fit.rounds[1]):
            around = self.fine.slopes(seen[-1], self.fit.slopes[2])
            seen.append(self._step(self.fine, seen[-1], *around, large)[0])
        places = torch.cat(seen)
        difference = self.fine.render(places) - large
        best = self._cost(self.fine, difference, places).argmin()
        return places[best][None], float((difference[best].abs() * self.fine.weight).sum())

    def _step(
        self, view: View, places: Tensor, scenes: Tensor, slopes: Tensor, picture: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A Gauss-Newton step from each place, reweighted for the loss, and its expected cost."""
        stiff = torch.full(places.shape[1:], 2 * self.fit.stiffness, device=places.device)
        stiff[0] *= _RIDGE  # along the way hardly anything holds it back
        offsets = torch.cat((torch.zeros_like(places[:, :1]), places[:, 1:]), dim=1)
        difference, flat = scenes - picture, slopes.flatten(2)
        move = torch.zeros_like(places)
        for _ in range(_REWEIGHTINGS):
            now = difference + torch.einsum("bk,bkcyx->bcyx", move, slopes)
            weight = (view.weight / (now.square() + self.fit.tolerance**2).sqrt()).flatten(1)
            normal = torch.einsum("bki,bi,bli->bkl", flat, weight, flat) + stiff.diag()
            slope = torch.einsum("bki,bi,bi->bk", flat, weight, difference.flatten(1))
            move = torch.linalg.solve(normal, -slope - stiff * offsets)
            move = self.way.confine(places + move, self.fit.reach) - places
        now = difference + torch.einsum("bk,bkcyx->bcyx", move, slopes)
        return places + move, self._cost(view, now, places + move)

    def _cost(self, view: View, difference: Tensor, places: Tensor) -> Tensor:
        """Weighted mean of the difference, squared where small, and what the offsets cost, [b]."""
        small = self.fit.tolerance
        size = (difference.square() + small**2).sqrt() - small
        offsets = places[:, 1:].square().sum(dim=1)
        return (size * view.weight).flatten(1).sum(dim=1) + self.fit.stiffness * offsets

    def _report(self, place: Tensor, residual: float, small: Tensor) -> TrueHandles:
        way, points = self.way, self.way.points(place)[0]
        ends = way.points(way.places(torch.tensor([0.0, way.length])))
        apart = (way.points(self.places) - points).norm(dim=-1).mean(dim=1)
        away = self.scenes[apart.argmax()]
        window = nearness(points, self.coarse.centres, self.fit.tube) * self.mask
        likeness = _correlation(small - away, self.coarse.render(place)[0] - away, window)
        return TrueHandles(
            handles=points * self.size,
            error=float((points - ends[1]).norm(dim=-1).mean()) * self.size,
            distance=float((ends[0] - ends[1]).norm(dim=-1).mean()) * self.size,
            way=float(place[0, 0]) / way.length,
            residual=residual,
            likeness=likeness,
            found=likeness >= self.fit.likeness,
        )


def _correlation(one: Tensor, other: Tensor, weight: Float[Tensor, "rows columns"]) -> float:
    """Of two pictures, each channel without its mean; 0 where one of them is constant."""
    weight = weight / weight.sum()
    one, other = (p - (p * weight).sum(dim=(1, 2), keepdim=True) for p in (one, other))
    product, *squares = (
        (a * b * weight).sum() for a, b in ((one, other), (one, one), (other,) * 2)
    )
    return float(product / (squares[0] * squares[1]).sqrt().clamp(min=1e-8))


class TrueHandle(SampleMean):
    """Means of `true_handle_error` (pixels), `_found`, `_residual` and `_likeness` over edits.

    A handle that was not found counts with the distance that it had in the unedited picture, so
    that destroying the object does not pay. Always show `true_handle_found` beside the error.

    Args:
        fit: how the scene is fitted.
    """

    def __init__(self, *, fit: SceneFit) -> None:
        kinds = ("error", "found", "residual", "likeness")
        super().__init__([f"true_handle_{kind}" for kind in kinds])
        self.fit = fit
        self._searches: OrderedDict[str, Search] = OrderedDict()  # the last used at the end

    def update(self, edited: Tensor, world: WorldEdit) -> None:
        """Count one edit.

        Args:
            edited: RGB in [0, 1], of the size that the world was rendered in.
            world: the edit as DragWorld knows it; of the last worlds further edits go faster.
        """
        check_sizes(world.source, edited)
        found = self._search(world, edited)(edited)
        numbers = {
            "error": found.error if found.found else found.distance,
            "found": found.found,
            "residual": found.residual,
            "likeness": found.likeness,
        }
        self.add({f"true_handle_{kind}": number for kind, number in numbers.items()})

    def _search(self, world: WorldEdit, edited: Tensor) -> Search:
        key = f"{world.name} {tuple(edited.shape)} {edited.device}"
        if key not in self._searches:
            self._searches[key] = Search(world, self.fit, edited.device)
            if len(self._searches) > KEPT:
                self._searches.popitem(last=False)
        self._searches.move_to_end(key)
        return self._searches[key]
