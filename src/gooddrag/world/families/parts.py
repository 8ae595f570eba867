"""Parts that several families share: eyes, clouds, leaves, trees."""

from __future__ import annotations

from torch import Tensor

from gooddrag.world.paint import Colour, Pen
from gooddrag.world.sdf import Frame, Number, capsule, ellipse, smooth_union, triangle, union


def eye(
    pen: Pen,
    x: Number,
    y: Number,
    width: Number,
    height: Number,
    iris: Colour,
    gaze: tuple[Number, Number] = (0.0, 0.0),
    white: Colour = "#fffaf0",
) -> None:
    """Draws an eye of radii (width, height) whose iris looks along `gaze` (picture widths)."""
    ball = pen.draw(lambda px, py: ellipse(px - x, py - y, width, height), white, rim=0.012)
    iris_x, iris_y = x + gaze[0], y + gaze[1]
    pen.draw(
        lambda px, py: ellipse(px - iris_x, py - iris_y, width * 0.74, width * 0.8),
        iris,
        rim=0.012,
        clip=ball,
    )
    pen.draw(
        lambda px, py: ellipse(px - iris_x, py - iris_y, width * 0.42, width * 0.5),
        "#241a2e",
        clip=ball,
    )
    pen.draw(
        lambda px, py: ellipse(
            px - iris_x + width * 0.26, py - iris_y + width * 0.32, width * 0.23, width * 0.23
        ),
        "#ffffff",
        clip=ball,
    )


def cloud(pen: Pen, x: Number, y: Number, size: Number, colour: Colour, opacity: Number) -> None:
    """Draws a cloud about `size` wide in radius, with a flat, soft bottom."""
    size = size.clamp(min=0.01) if isinstance(size, Tensor) else size

    def shape(px: Tensor, py: Tensor) -> Tensor:
        px, py = px - x, py - y
        middle = ellipse(px, py + 0.16 * size, 0.50 * size, 0.46 * size)
        left = ellipse(px + 0.52 * size, py, 0.46 * size, 0.30 * size)
        right = ellipse(px - 0.56 * size, py + 0.02 * size, 0.44 * size, 0.28 * size)
        return smooth_union(smooth_union(middle, left, 0.03), right, 0.03)

    pen.draw(
        shape,
        colour,
        ball=(x, y - 0.05 * size, size, 0.5 * size),
        depth=0.55,
        opacity=opacity,
        shadow=0.05,
    )


def leaf(
    pen: Pen, frame: Frame, length: Tensor, width: Number, colour: Colour, shadow: float = 0.12
) -> None:
    """Draws a leaf that grows from the frame's origin along its negative y axis."""
    pen = pen.canvas.pen(frame)

    def shape(px: Tensor, py: Tensor) -> Tensor:
        return ellipse(px, py + 0.5 * length, width, 0.5 * length)

    shown = _shown(length)
    ball = (0.0, -0.5 * length, width, 0.6 * length)
    cover = pen.draw(shape, colour, ball=ball, shadow=shadow * shown, opacity=shown)
    pen.draw(
        lambda px, py: capsule(px, py, (0.0, -0.05 * length), (0.0, -0.8 * length), 0.0085, 0.005),
        "#f4ffd8",
        opacity=0.28 * shown,
        clip=cover,
    )


def _shown(size: Tensor) -> Tensor:
    """Opacity of a thing of some size: it fades out only when almost nothing is left of it."""
    return (size / 0.03).clamp(0, 1)


def round_tree(
    pen: Pen, frame: Frame, height: Tensor, width: Number, colour: Colour, trunk: Colour
) -> None:
    """Draws a tree with a trunk and a crown of three lobes, rooted at the frame's origin."""
    pen = pen.canvas.pen(frame)
    shown = _shown(height)
    pen.draw(
        lambda px, py: capsule(
            px, py, (0.0, 0.0), (0.0, -0.6 * height), 0.09 * width + 0.008, 0.06 * width + 0.005
        ),
        trunk,
        ball=(0.0, 0.0, 0.05, 1.0),
        opacity=shown,
    )

    def crown(px: Tensor, py: Tensor) -> Tensor:
        low = union(
            ellipse(px + 0.42 * width, py + 0.46 * height, 0.58 * width, 0.22 * height),
            ellipse(px - 0.42 * width, py + 0.48 * height, 0.58 * width, 0.22 * height),
        )
        return smooth_union(low, ellipse(px, py + 0.70 * height, 0.66 * width, 0.30 * height), 0.02)

    ball = (0.0, -0.62 * height, width, 0.42 * height)
    pen.draw(crown, colour, ball=ball, rim=0.02, shadow=0.12 * shown, opacity=shown)


def fir_tree(
    pen: Pen, frame: Frame, height: Tensor, width: Number, colour: Colour, trunk: Colour
) -> None:
    """Draws a fir of three overlapping tiers, rooted at the frame's origin."""
    pen = pen.canvas.pen(frame)
    shown = _shown(height)
    pen.draw(
        lambda px, py: capsule(px, py, (0.0, 0.0), (0.0, -0.3 * height), 0.13 * width + 0.004),
        trunk,
        ball=(0.0, 0.0, 0.05, 1.0),
        opacity=shown,
    )
    for low, high, part in ((0.14, 0.58, 1.0), (0.38, 0.80, 0.78), (0.60, 0.985, 0.56)):
        pen.draw(
            lambda px, py, low=low, high=high, part=part: triangle(
                px,
                py,
                (-part * width, -low * height),
                (part * width, -low * height),
                (0.0, -high * height),
                0.010,
            ),
            colour,
            ball=(0.0, -(low + 0.1) * height, width, 0.5 * height),
            shadow=0.14 * shown,
            opacity=shown,
        )
