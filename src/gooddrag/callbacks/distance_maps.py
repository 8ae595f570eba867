"""What point tracking sees: how far features are from the handles' first, everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from lightning import LightningModule, Trainer
from torch import Tensor

from gooddrag.drag import DragOptimization
from gooddrag.events import EditCallback
from gooddrag.tracking import PointTracking, distance_maps
from gooddrag.types import DragSample

Maps = Float[Tensor, "n rows columns"]


class DistanceMaps(EditCallback):
    """Keeps a map for each tracking and handle of an edit.

    For methods that track by these distances; of others the lists stay empty. Each tracking makes
    its features at the size of the grid, which is no matter for a look at one edit.

    Attributes:
        maps: of each sample in the order of its `Trajectory.trackings`, on the half-resolution
            grid. A handle goes to the least of its map within r2 of where it was.
    """

    def __init__(self) -> None:
        self.maps: list[list[Maps]] = []

    def on_edit_start(self, samples: Sequence[DragSample]) -> None:
        """Begin anew."""
        self.maps = [[] for _ in samples]

    def on_edit_retry(self, samples: Sequence[DragSample]) -> None:
        """Forget what was kept of the attempt that failed."""
        self.on_edit_start(samples)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Listen to the tracking of a dragging that begins."""
        if isinstance(module, DragOptimization):
            drag = module
            module.tracking = Watched(
                **vars(module.tracking), show=lambda maps: self._keep(drag, maps)
            )

    def _keep(self, drag: DragOptimization, maps: Maps) -> None:
        for i in drag.dragging.nonzero().flatten().tolist():
            self.maps[i].append(maps[drag.owner == i].cpu())


@dataclass(frozen=True, kw_only=True)
class Watched(PointTracking):
    """Tracks as it is told to, and shows somebody the distances.

    Attributes:
        show: is given the maps of all pairs before each tracking.
    """

    show: Callable[[Maps], object]

    def find(self, features: Tensor, reference: Tensor, sample: Tensor, *where: Any) -> Tensor:
        """Where the handles are now; see `PointTracking`."""
        self.show(distance_maps(features, reference, sample, where[-1]))
        return super().find(features, reference, sample, *where)
