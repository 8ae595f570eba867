"""Figures for notebooks, as Pillow's pictures: how an edit went, and pictures side by side.

Needs matplotlib: pip install 'gooddrag[notebooks]'. Lengths are pixels of the edited picture.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from gooddrag.drawing import Picture, side_by_side
from gooddrag.types import Trajectory

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    message = f"figures need matplotlib ({error}): pip install 'gooddrag[notebooks]'"
    raise ImportError(message) from None

DPI = 110
WIDTH, HEIGHT = 8.0, 3.0  # of curves, inches
PANEL = 2.6  # of maps, inches a side
CELL = 2  # pixels to a cell of the half-resolution grid
RED, BLUE, BAND = "#e82c2c", "#2668f0", "#eeeeee"


def pictures(named: Mapping[str, Picture], columns: int = 4) -> Image.Image:
    """Pictures of one size, each with its name above it, in rows.

    Args:
        named: RGB in [0, 1] by name.
        columns: pictures in a row.
    """
    names = list(named)
    rows = [names[i : i + columns] for i in range(0, len(names), columns)]
    drawn = [side_by_side({name: named[name] for name in row}) for row in rows]
    width = max(row.shape[2] for row in drawn)
    filled = [functional.pad(row, (0, width - row.shape[2]), value=1.0) for row in drawn]
    sheet = (torch.cat(filled, dim=1).clamp(0, 1) * 255).round().byte()
    return Image.fromarray(sheet.permute(1, 2, 0).numpy())


def losses(way: Trajectory) -> Image.Image:
    """The loss of every gradient step and its feature term; what lies between is the mask term.

    Bands are denoising steps, with their timesteps.
    """
    figure, axes = _curves("gradient step", "loss")
    total = [loss for operation in way.operations for loss in operation.losses]
    drag = [loss for operation in way.operations for loss in operation.drag_losses]
    _bands(axes, way)
    axes.plot(np.arange(len(total)) + 0.5, total, lw=1.2, label="loss")
    axes.plot(np.arange(len(drag)) + 0.5, drag, lw=1.2, label="feature term")
    axes.set_xlim(0, max(1, len(total)))
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right")
    return _picture(figure)


def distances(ways: Mapping[str, Trajectory], targets: Float[Tensor, "n 2"]) -> Image.Image:
    """How far the handles are from their targets after each drag operation, as tracked.

    The mean over handles, pins included, and thin the curve of each.

    Args:
        ways: of the same drag by name, say by method.
        targets: (x, y) in pixels.
    """
    figure, axes = _curves("drag operation", "distance to target, px")
    for i, (name, way) in enumerate(ways.items()):
        where = torch.stack([way.start, *(operation.handles for operation in way.operations)])
        far = (where - targets).norm(dim=-1)
        axes.plot(far.numpy(), color=f"C{i}", lw=0.7, alpha=0.6)
        axes.plot(far.mean(dim=1).numpy(), color=f"C{i}", lw=2, label=f"{name}, mean")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.legend(loc="upper right")
    return _picture(figure)


def feature_distances(
    maps: Sequence[Float[Tensor, "n rows columns"]],
    way: Trajectory,
    targets: Float[Tensor, "n 2"],
    *,
    radius: int,
    handle: int = 0,
    count: int = 4,
) -> Image.Image:
    """What tracking saw of one handle, from its first tracking to its last.

    Args:
        maps: of `way.trackings` in order, see `gooddrag.callbacks.DistanceMaps`.
        way: of the sample.
        targets: (x, y) in pixels.
        radius: r2, of the window in which tracking looks, grid cells.
        handle: which one.
        count: maps to show at most, evenly spaced.

    Raises:
        ValueError: there are no maps, or not one for each tracking.
    """
    if not maps or len(maps) != len(way.trackings):
        raise ValueError(
            f"there must be a map for each tracking and at least one, found {len(maps)} maps and "
            f"{len(way.trackings)} trackings"
        )
    chosen = np.unique(np.linspace(0, len(maps) - 1, count).round().astype(int)).tolist()
    before = [way.start, *(tracking.handles for tracking in way.trackings)]
    top = max(float(maps[i][handle].max()) for i in chosen)
    figure = Figure(figsize=(PANEL * len(chosen) + 0.9, PANEL + 0.3), layout="constrained")
    panels = figure.subplots(1, len(chosen), squeeze=False)[0]
    for axes, i in zip(panels, chosen, strict=True):
        field, tracking = maps[i][handle], way.trackings[i]
        rows, columns = field.shape
        extent = (-0.5, CELL * columns - 0.5, CELL * rows - 0.5, -0.5)
        shown = axes.imshow(field, extent=extent, vmin=0, vmax=top, cmap="viridis")
        _window(axes, before[i][handle].tolist(), CELL * radius, extent)
        axes.plot(*targets[handle].tolist(), "o", color=BLUE, mec="white", ms=6)
        axes.plot(*tracking.handles[handle].tolist(), "o", color=RED, mec="white", ms=6)
        axes.set_title(f"tracking {i + 1}, t = {tracking.timestep}", fontsize=9)
        axes.set_axis_off()
    figure.colorbar(shown, ax=panels[-1], shrink=0.8, label="feature distance")
    return _picture(figure)


def _window(
    axes: Axes, centre: Sequence[float], reach: float, extent: tuple[float, float, float, float]
) -> None:
    """The window round a handle, as far as it is inside the picture."""
    left, right, bottom, top = extent
    x0, x1 = max(left, centre[0] - reach), min(right, centre[0] + reach)
    y0, y1 = max(top, centre[1] - reach), min(bottom, centre[1] + reach)
    axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="white", lw=1)


def _bands(axes: Axes, way: Trajectory) -> None:
    """Every second denoising step on grey, all with their timesteps above."""
    end = [0]
    for i, (t, group) in enumerate(groupby(way.operations, lambda operation: operation.timestep)):
        end.append(end[-1] + sum(len(operation.losses) for operation in group))
        first, last = end[-2:]
        axes.axvspan(first, last, color=BAND if i % 2 else "white", lw=0)
        axes.text(
            (first + last) / 2,
            1.01,
            f"t = {t}",
            transform=axes.get_xaxis_transform(),
            ha="center",
            fontsize=8,
        )


def _curves(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _picture(figure: Figure) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return Image.open(file)
