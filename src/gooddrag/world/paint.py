"""Antialiased painting of signed distance shapes with soft shading and shadows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gooddrag.world.sdf import Frame, Number, rotate

Shape = Callable[[Tensor, Tensor], Tensor]
Colour = Tensor | str
Ball = tuple[Number, Number, Number, Number]
Window = tuple[slice, slice]

WHOLE: Window = (slice(None), slice(None))

# Shadows are tinted violet and lights cream: grey ones make an illustration look dirty.
_SHADOW_TINT = (0.50, 0.44, 0.66)
_LIGHT_TINT = (1.0, 0.97, 0.86)


def rgb(colour: Colour, device: torch.device | None = None) -> Tensor:
    """Returns a colour [*, 3, 1, 1] from a tensor or a string like "#ffcc00"."""
    if isinstance(colour, Tensor):
        return colour
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, 3, 1, 1)


def pick(choice: Tensor, table: Sequence[Sequence[str]]) -> list[Tensor]:
    """Picks a row of colours by a number in [0, 1).

    Args:
        choice: [B, 1, 1, 1] uniform numbers.
        table: Rows of equally many colour strings.

    Returns:
        One colour tensor [B, 3, 1, 1] per column of the table.
    """
    row = (choice.flatten() * len(table)).long().clamp(0, len(table) - 1)
    columns = []
    for column in zip(*table, strict=True):
        colours = torch.cat([rgb(colour) for colour in column]).to(choice.device)
        columns.append(colours[row])
    return columns


def mix(first: Tensor, second: Tensor, share: Number) -> Tensor:
    """Linear blend: `share` 0 gives `first`, 1 gives `second`."""
    return first + (second - first) * share


def smoothstep(low: Number, high: Number, value: Tensor) -> Tensor:
    """Hermite step from 0 at `low` to 1 at `high`."""
    share = ((value - low) / (high - low)).clamp(0, 1)
    return share * share * (3 - 2 * share)


class Canvas:
    """A batch of pictures [B, 3, size, size] under painting, and the light they share.

    Attributes:
        picture: The colours so far, [B, 3, size, size] in [0, 1].
        x, y: Pixel centre coordinates [1, 1, 1, size] and [1, 1, size, 1] in picture widths.
        light: Unit direction towards the light, two tensors [B, 1, 1, 1].
    """

    def __init__(self, size: int, light: Tensor, window: Window = WHOLE) -> None:
        """Starts white pictures.

        Args:
            size: Width and height in pixels.
            light: [B, 1, 1, 1] in [-1, 1]: -1 lights from the left, 1 from the right.
            window: The rows and columns that are painted; the rest is left out.
        """
        centres = (torch.arange(size, device=light.device, dtype=light.dtype) + 0.5) / size
        rows, columns = (centres[part] for part in window)
        self.x, self.y = columns.view(1, 1, 1, -1), rows.view(1, 1, -1, 1)
        self.pixel = 1.0 / size
        light_x = 0.72 * light
        self.light = (light_x, -torch.sqrt(1 - light_x * light_x))
        shape = (light.shape[0], 3, len(rows), len(columns))
        self.picture = torch.ones(shape, dtype=light.dtype, device=light.device)

    def over(self, colour: Colour, cover: Tensor) -> None:
        """Lays `colour` over the pictures with opacity `cover` [B or 1, 1, size, size]."""
        colour = rgb(colour, self.picture.device)
        self.picture = self.picture + (colour - self.picture) * cover

    def backdrop(self, top: Colour, bottom: Colour, bend: float = 1.0) -> None:
        """Fills the pictures with a vertical gradient."""
        top, bottom = rgb(top, self.picture.device), rgb(bottom, self.picture.device)
        self.over(mix(top, bottom, self.y**bend), torch.ones_like(self.x))

    def glow(self, x: Number, y: Number, radius: Number, colour: Colour, opacity: Number) -> None:
        """Adds a soft round glow that fades to nothing at `radius`."""
        square = ((self.x - x) ** 2 + (self.y - y) ** 2) / (radius * radius)
        self.over(colour, opacity * (1 - square).clamp(min=0) ** 2)

    def pen(self, frame: Frame | None = None) -> Pen:
        """Returns a pen that draws in the coordinates of `frame` (or of the picture)."""
        return Pen(self, frame)


class Pen:
    """Draws shapes given in a local frame onto a canvas."""

    def __init__(self, canvas: Canvas, frame: Frame | None) -> None:
        """Keeps the canvas, its pixel coordinates and its light in the frame's coordinates."""
        self.canvas = canvas
        if frame is None:
            self.x, self.y, self.light = canvas.x, canvas.y, canvas.light
        else:
            angle = torch.as_tensor(frame.angle, dtype=canvas.x.dtype, device=canvas.x.device)
            self.x, self.y = frame.local(canvas.x, canvas.y)
            self.light = rotate(canvas.light[0], canvas.light[1], -angle)

    def cover(self, shape: Shape) -> Tensor:
        """Returns the part of each pixel that `shape` covers, [B or 1, 1, size, size]."""
        return (0.5 - shape(self.x, self.y) / self.canvas.pixel).clamp(0, 1)

    def shadow(
        self,
        shape: Shape,
        opacity: Number = 0.25,
        reach: Number = 0.016,
        blur: Number = 0.03,
        clip: Tensor | None = None,
    ) -> None:
        """Darkens what lies behind `shape`, moved away from the light by `reach`."""
        moved = shape(self.x + reach * self.light[0], self.y + reach * self.light[1])
        cover = smoothstep(blur, -blur, moved) * opacity
        if clip is not None:
            cover = cover * clip
        tint = rgb("#2a1f4a", moved.device)
        self.canvas.over(tint, cover)

    def draw(
        self,
        shape: Shape,
        colour: Colour,
        *,
        ball: Ball | None = None,
        depth: Number = 1.0,
        rim: float = 0.0,
        shadow: Number = 0.0,
        opacity: Number = 1.0,
        soft: Number = 0.0,
        clip: Tensor | None = None,
    ) -> Tensor:
        """Draws one shape.

        Args:
            shape: Signed distance of local coordinates.
            colour: Its base colour.
            ball: (x, y, radius_x, radius_y) of the ellipsoid whose shading it takes.
            depth: Strength of that shading.
            rim: Width over which the edge darkens, giving a puffy look; 0 for none.
            shadow: Opacity of its soft drop shadow; 0 for none.
            opacity: Opacity of the shape.
            soft: Width over which the edge fades out, in picture widths; 0 for a sharp edge.
            clip: Cover of another shape that this one must stay inside.

        Returns:
            The shape's cover [B or 1, 1, size, size], to clip details with.
        """
        if isinstance(shadow, Tensor) or shadow > 0:
            self.shadow(shape, shadow, clip=clip)
        distance = shape(self.x, self.y)
        if isinstance(soft, Tensor) or soft > 0:
            cover = smoothstep(0.0, -soft, distance)
        else:
            cover = (0.5 - distance / self.canvas.pixel).clamp(0, 1)
        if clip is not None:
            cover = cover * clip
        shaded = self._shade(rgb(colour, distance.device), distance, ball, depth, rim)
        self.canvas.over(shaded, cover * opacity)
        return cover

    def _shade(
        self, colour: Tensor, distance: Tensor, ball: Ball | None, depth: Number, rim: float
    ) -> Tensor:
        """Returns `colour` with highlight, shade and darkened rim, [B, 3, size, size] or flat."""
        if ball is None and rim == 0:
            return colour
        dark = torch.zeros_like(distance)
        if rim > 0:
            dark = dark + 0.22 * smoothstep(-rim, 0.0, distance)
        tone = None
        if ball is not None:
            # Things removed by an edit have size zero: keep the divisions finite.
            wide, high = (radius + 1e-4 for radius in ball[2:])
            across = (self.x - ball[0]) / wide * self.light[0]
            tone = (across + (self.y - ball[1]) / high * self.light[1]).clamp(-1.2, 1.2) * depth
            dark = dark + 0.36 * (-tone).clamp(min=0)
        tint = torch.tensor(_SHADOW_TINT, device=distance.device).view(1, 3, 1, 1)
        colour = colour * (1 - dark * (1 - tint))
        if tone is not None:
            light = torch.tensor(_LIGHT_TINT, device=distance.device).view(1, 3, 1, 1)
            colour = colour + (light - colour) * (0.26 * tone.clamp(min=0))
        return colour
