"""What crosses the boundaries between layers: a drag to perform, and the edit that came of it.

Coordinates are image pixels, (x, y) = (column, row), unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DragSample:
    """A picture and what should move where.

    Attributes:
        image: RGB in [0, 1].
        handles: the points p_i to drag, (x, y) in pixels.
        targets: where they should go, q_i, (x, y) in pixels.
        mask: 1 where the picture may change; None means everywhere.
        prompt: describes the picture; the paper uses the empty prompt.
        name: identifies the sample in outputs and seeds its randomness.
        category: what the picture shows, "" where the data set does not say.
        task: what kind of edit it is, say "rotation"; "" where the data set does not say.
        regions: the pixels of regions to drag and where each of them should go, (x, y), as
            DragBench-DR and -SR have them beside the points; None without.

    Raises:
        ValueError: shapes do not fit, a value is not finite, or a point lies outside the picture.
    """

    image: Float[Tensor, "3 h w"]
    handles: Float[Tensor, "n 2"]
    targets: Float[Tensor, "n 2"]
    mask: Float[Tensor, "1 h w"] | None = None
    prompt: str = ""
    name: str = "edit"
    category: str = ""
    task: str = ""
    regions: tuple[Float[Tensor, "m 2"], Float[Tensor, "m 2"]] | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[0] != 3:
            raise ValueError(
                f"the image must have shape (3, height, width), found {tuple(self.image.shape)}"
            )
        if not torch.isfinite(self.image).all():
            raise ValueError("the image holds values that are not finite numbers")
        if self.mask is not None and self.mask.shape != (1, *self.image.shape[1:]):
            height, width = self.image.shape[1:]
            raise ValueError(
                f"the mask must have the picture's size, 1 x {height} x {width}, "
                f"found {' x '.join(map(str, self.mask.shape))}"
            )
        self._check_pairs("handle", self.handles, "target", self.targets)
        if torch.equal(self.handles, self.targets):
            raise ValueError(
                "every pair is a pin (handle and target are the same point), so nothing would "
                "move: give at least one pair with a target elsewhere"
            )
        if self.regions is not None:
            self._check_pairs("region handle", self.regions[0], "region target", self.regions[1])

    def _check_pairs(self, handle: str, handles: Tensor, target: str, targets: Tensor) -> None:
        for name, points in ((handle, handles), (target, targets)):
            if points.ndim != 2 or points.shape[1] != 2:
                raise ValueError(f"{name}s must have shape (pairs, 2), found {tuple(points.shape)}")
        if len(handles) != len(targets):
            raise ValueError(
                f"every {handle} needs a {target}: found {len(handles)} {handle}s "
                f"and {len(targets)} {target}s"
            )
        if len(handles) == 0:
            raise ValueError(f"no point pairs: give at least one {handle} and its {target}")
        self._check_inside(handle, handles)
        self._check_inside(target, targets)

    def _check_inside(self, name: str, points: Tensor) -> None:
        height, width = self.size
        inside = (points >= 0).all(dim=1) & (points[:, 0] < width) & (points[:, 1] < height)
        if not inside.all():  # NaN is not inside either
            i = int(inside.int().argmin())
            x, y = points[i].tolist()
            raise ValueError(
                f"{name} {i + 1} at ({x:g}, {y:g}) lies outside the picture, "
                f"which is {width} x {height} pixels (x from 0 to {width - 1}, "
                f"y from 0 to {height - 1})"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return int(self.image.shape[1]), int(self.image.shape[2])


@dataclass(frozen=True, eq=False)
class DragOperation:
    """What one drag operation (J gradient steps and one tracking) did to one sample.

    Attributes:
        sample: index of the sample in its batch.
        step: index of the denoising step, counted from the inverted latent.
        timestep: the diffusion timestep t of that step.
        k: number of drag operations done so far on this sample, this one included.
        losses: total loss of each gradient step, at most J of them.
        drag_losses: the feature term of each.
        handles: where the handles are after tracking, (x, y) in pixels.
        preview: decodes the picture that the present latent predicts; costs one VAE decode.
    """

    sample: int
    step: int
    timestep: int
    k: int
    losses: tuple[float, ...]
    drag_losses: tuple[float, ...]
    handles: Float[Tensor, "n 2"]
    preview: Callable[[], Float[Tensor, "3 h w"]] | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Tracking:
    """One point tracking: also the extra one on entering a dragged step.

    Attributes:
        step: index of the denoising step.
        timestep: its diffusion timestep t.
        gradient_steps: gradient steps done in this denoising step before it (0: on entry).
        handles: the handles found, (x, y) in pixels.
        grid: the same on the half-resolution grid, (row, column).
    """

    step: int
    timestep: int
    gradient_steps: int
    handles: Float[Tensor, "n 2"]
    grid: Float[Tensor, "n 2"]


@dataclass(eq=False)
class Trajectory:
    """Everything that happened while one sample was dragged.

    Attributes:
        start: the handles before any tracking, (x, y) in pixels, as the grid holds them.
        trackings: every tracking in order.
        operations: every drag operation in order.
        stop: why dragging ended: "arrived", "no movement" or "schedule".
        stopped_at: index of the denoising step in which it ended early, None if it did not.
    """

    start: Float[Tensor, "n 2"]
    trackings: list[Tracking] = field(default_factory=list)
    operations: list[DragOperation] = field(default_factory=list)
    stop: str = "schedule"
    stopped_at: int | None = None

    @property
    def handles(self) -> Float[Tensor, "n 2"]:
        """Where the handles are believed to be at the end, (x, y) in pixels."""
        return self.trackings[-1].handles if self.trackings else self.start


@dataclass(frozen=True, eq=False)
class Edit:
    """The result of a method on one sample.

    Attributes:
        image: the edited picture, RGB in [0, 1], of the source's size.
        handles: final handle positions, (x, y) in pixels; of methods that do not track, where
            they put them.
        trajectory: how they got there; None for methods that do not track.
        seconds: wall-clock seconds per phase; of the whole batch the sample was edited in.
        peak_memory: bytes; on CUDA reserved on the device, elsewhere the process's maximum.
    """

    image: Float[Tensor, "3 h w"]
    handles: Float[Tensor, "n 2"]
    trajectory: Trajectory | None
    seconds: dict[str, float]
    peak_memory: int
