"""FreeDrag: drag features to where a handle should be, instead of asking where it went.

arXiv 2307.04684 (CVPR 2024), written from what is known of the paper, whose full text was not at
hand; no code of it was used. The way of a pair is a chain of sub-motions along the line to its
target. In each, at most so many gradient steps make the features round the place h_i like a
template T_i; then

    T_i' = lambda F(h_i) + (1 - lambda) T_i,   lambda = 1 / (1 + exp(a (L_end - b))),

the more of what is there now the better it was learnt, and a line search puts h_i where the
difference from the template is about l: farther on if the sub-motion was learnt, at the same place
if it got better, back if it got worse. No point is tracked.

The paper's: the two equations; a and b by lambda = 0.5 at L_end = 0.2 l and 0.1 at 0.8 l; learnt
means L_end <= 0.5 l; at most five steps a sub-motion, the farthest of d cells.
Not the paper's: l is in units of the features' own spread, so that one number fits every backbone;
all pairs of a sample end their sub-motions together; a pair has arrived when it has learnt at its
target.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gooddrag.drag import DragOptimization
from gooddrag.geometry import directions, product_patches
from gooddrag.methods.latent_drag import LatentDrag
from gooddrag.supervision import patch_difference
from gooddrag.types import Tracking

Points = Float[Tensor, "n 2"]
PerPair = Float[Tensor, " n"]
Difference = Callable[[PerPair], PerPair]

LEARNT = 0.5  # L_end / l, at most
WELL_LEARNT, ILL_LEARNT = (0.2, 0.5), (0.8, 0.1)  # L_end / l, and lambda there


def update_weight(end: PerPair, expected: PerPair) -> PerPair:
    """lambda = 1 / (1 + exp(a (L_end - b))), through the two cases that the paper fixes.

    >>> update_weight(torch.tensor([0.2, 0.8]), torch.ones(2)).tolist()
    [0.5, 0.10000000149011612]
    """
    (well, share), (ill, least) = WELL_LEARNT, ILL_LEARNT
    b = well * expected
    a = (math.log(1 / least - 1) - math.log(1 / share - 1)) / ((ill - well) * expected)
    return torch.sigmoid(-a * (end - b))


def spread_of(features: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Mean absolute deviation of a map's features from the mean of their channel."""
    return (features - features.mean(dim=(2, 3), keepdim=True)).abs().mean(dim=(1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class LineSearch:
    """Where the next sub-motion takes the features to.

    Attributes:
        expected: l, the difference from the template that a sub-motion should begin with, in units
            of the features' spread.
        d: how far one may go at most, grid cells.
        places: how many are tried on the way.
        steps: gradient steps of a sub-motion, at most.

    Raises:
        ValueError: a setting out of range.
    """

    expected: float
    d: float
    places: int
    steps: int

    def __post_init__(self) -> None:
        if min(self.expected, self.d) <= 0 or min(self.places, self.steps) < 1:
            raise ValueError(
                "expected and d must be positive, places and steps at least 1, found "
                f"expected={self.expected}, d={self.d}, places={self.places}, steps={self.steps}"
            )

    def best(
        self, start: PerPair, end: PerPair, difference: Difference, wanted: PerPair
    ) -> PerPair:
        """Of places evenly spaced from start (left out) to end, that whose difference fits best.

        Args:
            start, end: how far along each pair's line, grid cells.
            difference: of the features there from the templates.
            wanted: the difference to come near to.
        """
        shares = [i / self.places for i in range(1, self.places + 1)]
        tried = torch.stack([start + share * (end - start) for share in shares])
        gaps = torch.stack([(difference(gone) - wanted).abs() for gone in tried])
        return tried.gather(0, gaps.argmin(dim=0, keepdim=True))[0]


class TemplateOptimization(DragOptimization):
    """The dragging of a batch of samples by templates; z_t is the only parameter.

    A gradient step is a drag operation, since the samples of a batch end their sub-motions at
    different times. `handles` are the h_i: the features are pulled to them, so that they are
    the targets of the supervision as well, and the references' patches are the templates.

    Args:
        line_search: see there.
        parts: see `DragOptimization`.
    """

    def __init__(self, *, line_search: LineSearch, **parts: Any) -> None:
        super().__init__(**parts)
        self.line_search, self.start = line_search, self.pairs.start
        self.direction, self.length = directions(self.start, self.pairs.targets)
        self.gone = torch.zeros_like(self.length)
        self.learnt = torch.zeros(len(self.owner), dtype=torch.bool)

    def on_train_epoch_start(self) -> None:
        """The first sub-motion is to come: what is there is what the templates say."""
        super().on_train_epoch_start()
        self.taken = torch.zeros_like(self.dragging, dtype=torch.long)
        self.initial = torch.full_like(self.gone, torch.inf)

    def _track(self, features: Tensor, is_last: bool = True) -> Bool[Tensor, " b"]:
        """End the sub-motions that are learnt or have had their steps; tells whose h_i moved."""
        features = features.detach()
        if self.gradient_steps == 0:
            self.expected = self.line_search.expected * spread_of(features)[self.pairs.sample]
        difference = partial(self._difference, features)
        end = difference(self.gone)
        self.learnt = (end <= LEARNT * self.expected).cpu()
        over = self._over()
        if not over.any():
            return torch.zeros_like(over)
        of_pair = over[self.owner].to(end.device)
        self._update_templates(features, end, of_pair)
        self.gone = torch.where(of_pair, self._next(difference, end), self.gone)
        self.initial = torch.where(of_pair, difference(self.gone), self.initial)
        moved = self._pull_to(self._places(self.gone))
        self.learnt &= ~moved
        positions = self._positions()
        for i in over.nonzero().flatten().tolist():
            where = Tracking(self.step, self.t, self.gradient_steps, *positions[i])
            self.trajectories[i].trackings.append(where)
        return torch.zeros_like(over).index_put_((self.owner[moved],), torch.tensor(True))

    def _arrived(self) -> Bool[Tensor, " n"]:
        """At the target, and learnt there."""
        return super()._arrived() & self.learnt

    def _over(self) -> Bool[Tensor, " b"]:
        """Which samples' sub-motions are over; counts the gradient step that was made."""
        unlearnt = torch.zeros_like(self.taken).index_add_(0, self.owner, (~self.learnt).long())
        over = ((unlearnt == 0) | (self.taken == self.line_search.steps)) & self.dragging
        self.taken = torch.where(over, 0, self.taken) + 1
        return over

    def _places(self, gone: PerPair) -> Points:
        """Where the lines lead after so many cells, (row, column) on the grid."""
        return self.start + gone[:, None] * self.direction

    def _difference(self, features: Tensor, gone: PerPair) -> PerPair:
        """Mean |F(q_i) - T_i| round the places q_i on the lines."""
        patches, valid = product_patches(
            features, self.pairs.sample, self._places(gone), self.supervision.r1, self.canvas
        )
        templates, given = self.reference.patches
        return patch_difference(patches, templates, valid & given)

    def _update_templates(self, features: Tensor, end: PerPair, chosen: Bool[Tensor, " n"]) -> None:
        """T_i' = lambda F(h_i) + (1 - lambda) T_i, where chosen."""
        patches, valid = product_patches(
            features, self.pairs.sample, self.handles, self.supervision.r1, self.canvas
        )
        templates, given = self.reference.patches
        share = update_weight(end, self.expected)[:, None, None, None] * valid[:, None]
        updated = share * patches + (1 - share) * templates
        templates = torch.where(chosen[:, None, None, None], updated, templates)
        reference = replace(self.reference, patches=(templates, given))
        self.references[self.step] = reference

    def _next(self, difference: Difference, end: PerPair) -> PerPair:
        """How far the next h_i is: on if it was learnt, here if it got better, else back."""
        search, gone = self.line_search, self.gone
        farthest = torch.minimum(gone + search.d, self.length)
        nearest = (gone - search.d).clamp(min=0)
        on = search.best(gone, farthest, difference, self.expected)
        back = search.best(gone, nearest, difference, torch.zeros_like(end))
        learnt, better = end <= LEARNT * self.expected, end < self.initial
        return torch.where(learnt, on, torch.where(better, gone, back))

    def _pull_to(self, places: Points) -> Bool[Tensor, " n"]:
        """Let the handles, which are what the features are pulled to, be elsewhere."""
        before = self.seen
        self.handles, self.seen = places, self._read(places, is_last=True)
        self.pairs = replace(self.pairs, targets=places)
        return (self.seen != before).any(dim=1)


class FreeDrag(LatentDrag):
    """A `LatentDrag` by templates.

    Args:
        line_search: see there.
        parts: see `LatentDrag`.
    """

    def __init__(self, *, line_search: LineSearch, **parts: Any) -> None:
        super().__init__(**parts)
        self.line_search = line_search

    def _optimization(self, **parts: Any) -> DragOptimization:
        return TemplateOptimization(line_search=self.line_search, **parts)
