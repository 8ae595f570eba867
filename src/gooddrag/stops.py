"""Which samples of a batch are still being dragged, and what ended the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gooddrag.types import Trajectory


class Stops:
    """The stops of a batch, decided on the CPU; each sample has its own.

    Args:
        trajectories: one for each sample; why and when it stopped is written there.
        owner: whose each point pair is.
        patience, patience_restarts, on_arrival: see `gooddrag.drag.DragSettings`.

    Attributes:
        active: not stopped for good.
        resting: not dragged for the rest of this denoising step.
        unmoved: for each sample the trackings in a row that moved no handle.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        owner: Int[Tensor, " n"],
        *,
        patience: int | None,
        patience_restarts: bool,
        on_arrival: str,
    ) -> None:
        self.trajectories, self.owner = trajectories, owner
        self.patience, self.patience_restarts = patience, patience_restarts
        self.on_arrival = on_arrival
        self.active = torch.ones(len(trajectories), dtype=torch.bool)
        self.resting = torch.zeros_like(self.active)
        self.unmoved = [0] * len(trajectories)

    @property
    def dragging(self) -> Bool[Tensor, " b"]:
        """The samples that are being dragged now."""
        return self.active & ~self.resting

    @property
    def now(self) -> list[int]:
        """Their indices."""
        return self.dragging.nonzero().flatten().tolist()

    def enter_step(self) -> None:
        """A denoising step begins: nobody rests."""
        self.resting.zero_()
        if self.patience_restarts:
            self.unmoved = [0] * len(self.unmoved)

    def lose_patience(self, moved: Bool[Tensor, " b"], step: int) -> None:
        """After a tracking: end those whose handles have kept still for too long."""
        for i in self.now:
            self.unmoved[i] = 0 if moved[i] else self.unmoved[i] + 1
            if self.unmoved[i] == self.patience:
                self.end(i, "no movement", step)

    def see_arrived(self, arrived: Bool[Tensor, " n"], step: int) -> None:
        """Before a drag operation: end, or let rest, those whose pairs have all arrived."""
        if self.on_arrival == "never":
            return
        for i in self.now:
            if arrived[self.owner == i].all():
                if self.on_arrival == "step":
                    self.resting[i] = True
                else:
                    self.end(i, "arrived", step)

    def last_dragged(self, last: int) -> list[int]:
        """For each sample the last step it was dragged in, if the schedule's last is `last`."""
        stopped = [trajectory.stopped_at for trajectory in self.trajectories]
        return [last if step is None else step for step in stopped]

    def end(self, sample: int, why: str, step: int) -> None:
        """One sample is not dragged any more."""
        self.active[sample] = False
        self.trajectories[sample].stop = why
        self.trajectories[sample].stopped_at = step
