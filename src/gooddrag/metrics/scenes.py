"""Scenes near an edit of DragWorld, and windows of their pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from gooddrag.world import WorldEdit, material_points, render_scenes

_PROBE = 1e-3  # step of a parameter that shows whether handles follow it
_CUTOFF = 0.05  # pixels of less weight, of the largest, are not rendered


@dataclass(frozen=True)
class Way:
    """The scenes near an edit's way from source to truth, by their places.

    A place, a row of 1 + m numbers in picture widths of the handles' movement, is how far along
    the way it is, and its offsets by the m free parameters: those that move handles.

    Attributes:
        family: of the scene.
        names: of the material points that should move.
        start, end: parameters [1] of source and truth.
        length: mean distance of the handles.
        units: of the free parameters, what moves a handle by a picture width.
        limits: of the first number.
    """

    family: str
    names: tuple[str, ...]
    start: dict[str, Tensor]
    end: dict[str, Tensor]
    length: float
    units: dict[str, float]
    limits: tuple[float, float]

    @classmethod
    def of(cls, world: WorldEdit, beyond: float, leverage: float, device: torch.device) -> Way:
        """The way of one edit.

        Args:
            world: the edit.
            beyond: how far it goes on before its start and behind its end, as part of it.
            leverage: a parameter that the edit leaves alone is free if a unit of it moves a handle
                by at least this much.
            device: where scenes are rendered.
        """
        moving = (world.handles != world.targets).any(dim=1).tolist()
        names = tuple(name for name, moves in zip(world.points, moving, strict=True) if moves)
        start, end = (
            {name: torch.tensor([value], device=device) for name, value in parameters.items()}
            for parameters in (world.parameters, world.edited_parameters)
        )
        changed = [name for name in start if not torch.equal(start[name], end[name])]
        ends = [material_points(world.family, parameters, names) for parameters in (start, end)]
        length = float((ends[0] - ends[1]).norm(dim=-1).mean())
        # things that are being removed or created have no size beyond nothing
        low = 0.0 if world.task == "creation" else -beyond * length
        high = length if world.task == "removal" else (1 + beyond) * length
        bare = cls(world.family, names, start, end, length, {}, (low, high))
        # a single parameter that changes is the way itself
        others = [name for name in start if name not in changed or len(changed) > 1]
        moved = {name: bare.leverage(name) for name in others}
        units = {name: 1 / much for name, much in moved.items() if much >= leverage}
        return cls(world.family, names, start, end, length, units, (low, high))

    def parameters(self, places: Float[Tensor, "b k"]) -> dict[str, Tensor]:
        """The scenes' parameters, each [b]."""
        along = places[:, 0] / self.length
        found = {
            name: start + along * (self.end[name] - start) for name, start in self.start.items()
        }
        for number, (name, unit) in enumerate(self.units.items(), start=1):
            found[name] = found[name] + places[:, number] * unit
        return found

    def points(self, places: Float[Tensor, "b k"]) -> Float[Tensor, "b n 2"]:
        """Where the handles are, (x, y) in picture widths."""
        return material_points(self.family, self.parameters(places), self.names)

    def leverage(self, name: str) -> float:
        """How far a parameter's unit moves a handle, at most, on the way; picture widths."""
        base = self.parameters(self.places(torch.tensor([0.0, 0.5, 1.0]) * self.length))
        probed = base | {name: base[name] + _PROBE}
        before, after = (material_points(self.family, p, self.names) for p in (base, probed))
        return float((after - before).norm(dim=-1).max()) / _PROBE

    def places(self, along: Float[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """Places on the way itself."""
        zeros = along.new_zeros(len(along), len(self.units))
        return torch.cat((along[:, None], zeros), dim=1).to(self.start["light"].device)

    def confine(self, places: Tensor, reach: float) -> Tensor:
        """Bring places back to where is searched."""
        along = places[..., :1].clamp(*self.limits)
        return torch.cat((along, places[..., 1:].clamp(-reach, reach)), dim=-1)


@dataclass(frozen=True)
class View:
    """A window of pictures of one size, and how its pixels count.

    Attributes:
        way: whose scenes are rendered.
        size: side of the whole picture, pixels.
        window: rows and columns.
        weight: of each pixel of each channel, [3, rows, columns]; sums to 1.
        centres: (y, x) of the window's rows and columns in picture widths.
        smooth: whether pictures are blurred a little, so that edges are seen from farther away.
    """

    way: Way
    size: int
    window: tuple[slice, slice]
    weight: Tensor
    centres: tuple[Tensor, Tensor]
    smooth: bool

    @classmethod
    def of(
        cls, way: Way, mask: Float[Tensor, "1 h w"], size: int, tube: float, smooth: bool
    ) -> View:
        """The window in which the mask and a tube along the handles' way count."""
        line = way.points(way.places(torch.linspace(0, way.length, 9))).flatten(0, 1)
        centres = (torch.arange(size, device=mask.device) + 0.5) / size
        weight = nearness(line, (centres, centres), tube) * shrink(mask, size)[0]
        counts = weight > _CUTOFF * weight.max()
        rows, columns = (_span(counts.any(dim=axis)) for axis in (1, 0))
        part = weight[rows, columns].expand(3, -1, -1)
        middle = (centres[rows], centres[columns])
        return cls(way, size, (rows, columns), part / part.sum(), middle, smooth)

    def cut(self, picture: Float[Tensor, "3 h w"]) -> Tensor:
        """The window of a picture, [3, rows, columns]."""
        return self._soften(shrink(picture, self.size)[(..., *self.window)][None])[0]

    def render(self, places: Float[Tensor, "b k"]) -> Tensor:
        """The window of scenes, [b, 3, rows, columns]."""
        parameters = self.way.parameters(places)
        # far from its way a scene may have no picture
        scenes = render_scenes(self.way.family, parameters, self.size, self.window).nan_to_num()
        return self._soften(scenes)

    def slopes(self, places: Float[Tensor, "b k"], step: float) -> tuple[Tensor, Tensor]:
        """Scenes, and their changes with each of the k numbers by central differences.

        Returns:
            [b, 3, rows, columns] and [b, k, 3, rows, columns].
        """
        count, numbers = places.shape
        steps = step * torch.eye(numbers, device=places.device)
        around = torch.cat((places[:, None] + steps, places[:, None] - steps), dim=1)
        around = torch.cat((around[..., :1].clamp(*self.way.limits), around[..., 1:]), dim=-1)
        every = torch.cat((places[:, None], around), dim=1)
        scenes = self.render(every.flatten(0, 1)).unflatten(0, (count, -1))
        ahead, behind = around.chunk(2, dim=1)
        width = (ahead - behind).diagonal(dim1=1, dim2=2)[..., None, None, None]
        return scenes[:, 0], (scenes[:, 1 : 1 + numbers] - scenes[:, 1 + numbers :]) / width

    def _soften(self, pictures: Tensor) -> Tensor:
        if not self.smooth:
            return pictures
        wide = functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
        return functional.avg_pool2d(wide, 3, stride=1)


def shrink(picture: Float[Tensor, "c h w"], size: int) -> Tensor:
    """A picture in another size, each pixel the mean of what it covers."""
    return functional.interpolate(picture[None], (size, size), mode="area")[0]


def nearness(points: Float[Tensor, "n 2"], centres: tuple[Tensor, Tensor], width: float) -> Tensor:
    """How near each pixel is to the nearest point, a Gaussian of its distance."""
    y, x = centres[0][:, None, None], centres[1][None, :, None]
    square = (x - points[:, 0]).square() + (y - points[:, 1]).square()
    return torch.exp(-square.amin(dim=-1) / (2 * width**2))


def _span(counts: Tensor) -> slice:
    where = counts.nonzero()[:, 0]
    return slice(int(where[0]), int(where[-1]) + 1)
