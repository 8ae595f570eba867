"""Pictures of an edit: where the points were, where they should go, and where they went.

Handles are red, targets blue; a pin, whose handle is its target, is a red ring round a blue dot.
Points are (x, y) in pixels, pictures (channel, row, column) in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from gooddrag.types import DragSample, Edit

RED = (232, 44, 44, 255)
BLUE = (38, 104, 240, 255)
WHITE = (255, 255, 255, 255)
BLACK = (20, 20, 20, 255)
DIM = 0.8
Picture = Float[Tensor, "3 h w"]


def before_after(sample: DragSample, edit: Edit) -> Float[Tensor, "3 h2 w2"]:
    """Draw the drag on the source and, beside it, what came of it on the result.

    Left: the source, dimmed where it must not change, with handles, targets and arrows. Right:
    the result with the targets, the paths of the handles and where they ended, as tracked.
    """
    left = overlay(sample.image, sample.handles, sample.targets, sample.mask)
    right = frame(edit.image, edit.handles, sample.targets, path_of(edit))
    return side_by_side({"source": left, "result": right})


def side_by_side(pictures: Mapping[str, Picture]) -> Float[Tensor, "3 h2 w2"]:
    """Put pictures of one size in a row on white, each with its name above it."""
    height, width = next(iter(pictures.values())).shape[1:]
    gap = titled(torch.ones(3, height, max(4, round(0.02 * min(height, width)))), "")
    parts = [part for name, shown in pictures.items() for part in (gap, titled(shown, name))]
    return torch.cat(parts[1:], dim=2)


def overlay(
    image: Picture,
    handles: Float[Tensor, "n 2"],
    targets: Float[Tensor, "n 2"],
    mask: Float[Tensor, "1 h w"] | None = None,
    path: Float[Tensor, "k n 2"] | None = None,
    arrows: bool = True,
) -> Picture:
    """Draw handles and targets, and if given the mask and the way that the handles took.

    Args:
        image: RGB in [0, 1].
        handles: (x, y) in pixels.
        targets: (x, y) in pixels.
        mask: 1 where the picture may change; outlined, and the rest is dimmed.
        path: positions of the handles in order.
        arrows: draw an arrow from every handle to its target.

    Returns:
        RGB in [0, 1], of the image's size; pixels under no mark are unchanged.
    """
    image = image.detach().to("cpu", torch.float32).clamp(0, 1)
    if mask is not None and 0 < mask.mean() < 1:
        image = _with_mask(image, mask)
    ink = _Ink(image.shape[1], image.shape[2])
    if path is not None:
        for i in range(path.shape[1]):
            ink.polyline(path[:, i].tolist())
    for p, q in zip(handles.tolist(), targets.tolist(), strict=True):
        if arrows and p == q:
            ink.pin(q)
        else:
            ink.pair(p, q, arrow=arrows)
    return ink.on(image)


def frame(
    image: Picture,
    handles: Float[Tensor, "n 2"],
    targets: Float[Tensor, "n 2"],
    path: Float[Tensor, "k n 2"] | None = None,
) -> Picture:
    """Draw the state of an edit: targets, handles and the way so far, without arrows."""
    return overlay(image, handles, targets, path=path, arrows=False)


def path_of(edit: Edit) -> Float[Tensor, "k n 2"] | None:
    """Every position that the handles had in order, (x, y) in pixels; None if not tracked."""
    if edit.trajectory is None:
        return None
    found = [tracking.handles for tracking in edit.trajectory.trackings]
    positions = [edit.trajectory.start, *found, edit.handles]
    return torch.stack([position.detach().cpu().float() for position in positions])


def titled(image: Picture, title: str) -> Float[Tensor, "3 h2 w"]:
    """Put a white strip with a title above a picture."""
    _, height, width = image.shape
    strip = max(18, round(0.08 * height))
    canvas = Image.new("RGB", (width, strip), WHITE[:3])
    font = ImageFont.load_default(size=round(0.62 * strip))
    middle = (width / 2, strip / 2)
    ImageDraw.Draw(canvas).text(middle, title, font=font, fill=BLACK[:3], anchor="mm")
    return torch.cat([_to_tensor(canvas), image], dim=1)


def _with_mask(image: Picture, mask: Float[Tensor, "1 h w"]) -> Picture:
    """Dim what must not change and outline what may."""
    mask = mask.detach().to("cpu", torch.float32)
    image = torch.where(mask > 0.5, image, image * DIM)
    line = 0.85 * _outline(mask, _unit(*image.shape[1:]))
    return image * (1 - line) + line


def _outline(mask: Float[Tensor, "1 h w"], width: float) -> Float[Tensor, "1 h w"]:
    """How much of each pixel is covered by a line of `width` pixels just outside the mask."""
    scale = _supersampling(*mask.shape[1:])
    fine = functional.interpolate(mask[None], scale_factor=scale, mode="bilinear")
    inside = (fine > 0.5).float()
    reach = max(1, round(width * scale))
    # a square window, one axis at a time, which is much faster than both at once
    grown = functional.max_pool2d(inside, (2 * reach + 1, 1), 1, (reach, 0))
    grown = functional.max_pool2d(grown, (1, 2 * reach + 1), 1, (0, reach))
    return functional.avg_pool2d(grown - inside, scale)[0]


def _supersampling(height: int, width: int) -> int:
    """How many times larger to draw: less for large pictures, which need it less."""
    return next(s for s in (4, 3, 2, 1) if s == 1 or s * max(height, width) <= 1600)


def _unit(height: int, width: int) -> float:
    """The scale of lines and dots: 1 for a picture of 256 pixels."""
    return max(0.5, (height * width) ** 0.5 / 256)


def _to_tensor(picture: Image.Image) -> Float[Tensor, "c h w"]:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


class _Ink:
    """A transparent layer drawn several times larger and shrunk, which smooths its edges.

    Args:
        height: of the picture, in pixels.
        width: of the picture, in pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        self.scale = _supersampling(height, width)
        self.layer = Image.new("RGBA", (width * self.scale, height * self.scale))
        self.draw = ImageDraw.Draw(self.layer)
        self.unit = _unit(height, width) * self.scale

    def on(self, image: Picture) -> Picture:
        """Lay the drawing over the picture."""
        layer = _to_tensor(self.layer.reduce(self.scale))
        alpha = layer[3:]
        return image * (1 - alpha) + layer[:3] * alpha

    def pair(self, p: list[float], q: list[float], arrow: bool) -> None:
        """A handle and its target, with an arrow between them or so that both show if they meet."""
        self.dot(q, 4.0 if arrow else 5.6, BLUE)
        if arrow:
            self.arrow(p, q)
        self.dot(p, 4.0 if arrow else 2.6, RED)

    def pin(self, q: list[float]) -> None:
        """A point that is to stay."""
        self.dot(q, 6.4, RED)
        self.dot(q, 3.2, BLUE)

    def dot(self, point: list[float], radius: float, colour: tuple[int, ...]) -> None:
        """A disc with a white rim."""
        x, y = self._at(point)
        for r, fill in ((radius + 1.2, WHITE), (radius, colour)):
            r *= self.unit
            box = tuple(round(side) for side in (x - r, y - r, x + r, y + r))
            self.draw.ellipse(box, fill=fill)

    def polyline(self, points: list[list[float]]) -> None:
        """A thin red line with a white rim."""
        line = [self._at(point) for point in points]
        for width, colour in ((2.6, WHITE), (1.4, RED)):
            width = max(1, round(width * self.unit))
            self.draw.line(line, fill=colour, width=width, joint="curve")

    def arrow(self, p: list[float], q: list[float]) -> None:
        """A white arrow with a dark rim, from the handle to the rim of the target's dot."""
        (x0, y0), (x1, y1) = self._at(p), self._at(q)
        length = math.hypot(x1 - x0, y1 - y0)
        reach = length - 4.6 * self.unit  # the tip touches the target's dot
        if reach <= 5 * self.unit:  # the dots touch and leave no room
            return
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        head = min(7 * self.unit, reach / 2)
        tip = (x0 + ux * reach, y0 + uy * reach)
        neck = (tip[0] - ux * head, tip[1] - uy * head)
        for grow, colour in ((0.8 * self.unit, BLACK), (0.0, WHITE)):
            wide = 0.5 * head + grow
            back = (neck[0] - ux * grow, neck[1] - uy * grow)
            front = (tip[0] + ux * grow, tip[1] + uy * grow)
            self.draw.line([(x0, y0), neck], fill=colour, width=round(1.6 * self.unit + 2 * grow))
            sides = [(back[0] - uy * wide * s, back[1] + ux * wide * s) for s in (1, -1)]
            self.draw.polygon([front, *sides], fill=colour)

    def _at(self, point: list[float]) -> tuple[float, float]:
        """The middle of a pixel, on the enlarged layer."""
        return (point[0] + 0.5) * self.scale - 0.5, (point[1] + 0.5) * self.scale - 0.5
