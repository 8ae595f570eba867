"""A person's face."""

from __future__ import annotations

from torch import Tensor

from gooddrag.world.families.parts import eye
from gooddrag.world.family import Draw, Edit, Family, Parameters, Point
from gooddrag.world.paint import Canvas, Pen, mix, pick, rgb
from gooddrag.world.sdf import (
    Frame,
    box,
    capsule,
    circle,
    ellipse,
    intersection,
    smile,
    smooth_union,
)

_SKIN = (  # skin, cheeks
    ("#f9d3b4", "#f59c8c"),
    ("#eab98d", "#e58a70"),
    ("#c98d62", "#c9694f"),
    ("#9a6444", "#a84e3c"),
    ("#fbdfc8", "#f7a8a0"),
    ("#74482f", "#8f3e34"),
)
_HAIR = (("#5a3a2c",), ("#2f2733",), ("#c9803f",), ("#e8bd62",), ("#8a4a34",), ("#b5533c",))
_WALL = (  # top, bottom, disc, shirt, collar
    ("#bfe0ea", "#eaf5f4", "#d6ecf0", "#e8785f", "#fdf1dc"),
    ("#fbd9c6", "#fdefe4", "#fce5d8", "#4f8fa3", "#f7e3b8"),
    ("#d9d2f0", "#f1eefa", "#e4dff5", "#e9b03f", "#fdf6e3"),
    ("#fae5aa", "#fdf5da", "#fbedc4", "#5b7fbf", "#f2f4fb"),
    ("#d3e8c2", "#f0f7e4", "#e2f0d5", "#c95f7f", "#fde6ea"),
)
_IRIS = (("#6a8f4f",), ("#7a5234",), ("#4f8fc0",), ("#5a9a94",))


def _parameters(draw: Draw) -> Parameters:
    return {
        "light": draw.between(-1, 1),
        "wall": draw.unit(),
        "skin": draw.unit(),
        "hair_colour": draw.unit(),
        "iris": draw.unit(),
        "x": draw.between(0.46, 0.54),
        "y": draw.between(0.72, 0.75),
        "body_x": draw.between(0.48, 0.52),
        "tilt": draw.between(-0.10, 0.10),
        "width": draw.between(0.175, 0.20),
        "height": draw.between(0.21, 0.24),
        "hair": draw.between(0.10, 0.34),
        "fringe": draw.between(-0.5, 0.5),
        "bun": draw.chance(0.35) * draw.between(0.07, 0.09),
        "eye": draw.between(0.034, 0.040),
        "open": draw.between(0.9, 1.05),
        "gaze": draw.between(-0.010, 0.010),
        "brow": draw.between(0.0, 0.015),
        "mouth": draw.chance(0.4) * draw.between(0.5, 1.0),
        "mouth_width": draw.between(0.055, 0.070),
        "glasses": draw.chance(0.25),
        "earring": draw.chance(0.4),
    }


def _head(p: Parameters) -> Frame:
    """The head's frame; it tilts about the neck at (x, y)."""
    centre = Frame(p["x"], p["y"], p["tilt"]).picture(0.0, -p["height"] - 0.01)
    return Frame(centre[0], centre[1], p["tilt"])


def _mouth(p: Parameters) -> tuple[Tensor, Tensor]:
    """Top and half height of the open mouth in the head's frame."""
    return 0.48 * p["height"], 0.042 * p["mouth"]


def _points(p: Parameters) -> dict[str, Point]:
    head = _head(p)
    w, h = p["width"], p["height"]
    zero = 0.0 * w
    top, half = _mouth(p)
    low = _hair_end(p)
    return {
        "nose": head.picture(zero, 0.20 * h),
        "chin": head.picture(zero, 0.94 * h),
        "forehead": head.picture(zero, -0.45 * h),
        "crown": head.picture(zero, -1.10 * h),
        "left eye": head.picture(-0.43 * w, -0.02 * h),
        "right eye": head.picture(0.43 * w, -0.02 * h),
        "left lid": head.picture(-0.43 * w, -0.02 * h - 1.25 * p["eye"] * p["open"] - 0.004),
        "right lid": head.picture(0.43 * w, -0.02 * h - 1.25 * p["eye"] * p["open"] - 0.004),
        "left hair": head.picture(-1.06 * w, low - 0.03),
        "right hair": head.picture(1.06 * w, low - 0.03),
        "lip": head.picture(zero, top + 2 * half + 0.012 + 0.020 * (1 - p["mouth"])),
        "bun": head.picture(zero, -1.12 * h - 1.25 * p["bun"]),
        "bun middle": head.picture(zero, -1.12 * h - 0.5 * p["bun"]),
        "collar": (p["body_x"], 0.90 + zero),
    }


def _hair_end(p: Parameters) -> Tensor:
    """How far the hair at the back reaches down in the head's frame."""
    return 0.10 * p["height"] + p["hair"]


def _paint_back(p: Parameters, pen: Pen, hair: Tensor) -> None:
    """Paints the hair behind the head, and the bun."""
    w, h, low = p["width"], p["height"], _hair_end(p)
    bun = p["bun"]
    pen.draw(
        lambda px, py: circle(px, py + 1.12 * h + 0.45 * bun, bun),
        hair,
        ball=(0.0, -1.12 * h - 0.5 * bun, bun, bun),
        rim=0.02,
    )

    def shape(px: Tensor, py: Tensor) -> Tensor:
        cap = ellipse(px, py + 0.16 * h, 1.22 * w, 1.02 * h)
        locks = box(px, py - (low - 0.2 * h) / 2, 1.26 * w, (low + 0.2 * h) / 2, 0.07)
        return smooth_union(cap, locks, 0.05)

    pen.draw(
        shape,
        mix(hair, rgb("#1c1430", pen.x.device), 0.12),
        ball=(0.0, 0.0, 1.3 * w, 1.4 * h),
        shadow=0.16,
    )


def _paint_body(p: Parameters, pen: Pen, skin: Tensor, shirt: Tensor, collar: Tensor) -> None:
    x = p["body_x"]
    pen.draw(
        lambda px, py: smooth_union(
            ellipse(px - x, py - 1.06, 0.34, 0.22), box(px - x, py - 0.92, 0.13, 0.10, 0.05), 0.04
        ),
        shirt,
        ball=(x, 1.0, 0.36, 0.22),
        shadow=0.14,
    )
    pen.draw(
        lambda px, py: ellipse(px - x, py - 0.835, 0.135, 0.075),
        collar,
        ball=(x, 0.84, 0.14, 0.1),
        shadow=0.15,
    )
    pen.draw(lambda px, py: ellipse(px - x, py - 0.822, 0.100, 0.058), skin)
    neck = pen.draw(
        lambda px, py: capsule(px, py, (p["x"], p["y"] - 0.06), (x, 0.82), 0.075),
        skin,
        ball=(x, 0.75, 0.1, 0.3),
    )
    pen.draw(
        lambda px, py: ellipse(px - p["x"], py - p["y"] + 0.01, 0.15, 0.055),
        "#5a2a3a",
        opacity=0.28,
        soft=0.04,
        clip=neck,
    )


def _paint_eyes(p: Parameters, pen: Pen, iris: Tensor, hair: Tensor, skin: Tensor) -> None:
    w, h = p["width"], p["height"]
    size, opening = p["eye"], p["open"]
    for side in (-1, 1):
        x, y = side * 0.43 * w, -0.02 * h
        eye(pen, x, y, size, 1.2 * size * opening, iris, (p["gaze"], 0.0 * w))
        # The upper lash line; when the eye is shut it is all that shows.
        pen.draw(
            lambda px, py, x=x, y=y: smile(
                px - x, py - y + 0.10 * size, 1.08 * size, -1.2 * size * (opening - 0.22), 0.0085
            ),
            "#3a2630",
        )
        pen.draw(
            lambda px, py, x=x, y=y: smile(
                px - x, py - y + 2.15 * size + p["brow"], 1.15 * size, -0.016, 0.0095
            ),
            mix(hair, rgb("#2a1a20", skin.device), 0.25),
        )
        rim = 1.75 * size
        pen.draw(
            lambda px, py, x=x, y=y, rim=rim: circle(px - x, py - y, rim).abs() - 0.008,
            "#4a3550",
            opacity=p["glasses"] * 0.9,
        )
    pen.draw(
        lambda px, py: smile(px, py + 0.02 * h + 0.006, 0.43 * w - 1.7 * size, -0.012, 0.008),
        "#4a3550",
        opacity=p["glasses"] * 0.9,
    )


def _paint_mouth(p: Parameters, pen: Pen, lips: Tensor) -> None:
    top, half = _mouth(p)
    wide = p["mouth_width"]

    def shape(px: Tensor, py: Tensor) -> Tensor:
        # A half-moon: flat above, round below.
        moon = ellipse(px, py - top, wide * 0.95, 2 * half + 0.004)
        return intersection(moon, top - py)

    mouth = pen.draw(shape, "#7c2a38", opacity=(p["mouth"] / 0.1).clamp(0, 1))
    mouth = mouth * (p["mouth"] / 0.1).clamp(0, 1)
    pen.draw(
        lambda px, py: ellipse(px, py - top - 2.1 * half, 0.6 * wide, 0.8 * half),
        "#ee7f86",
        clip=mouth,
    )
    pen.draw(
        lambda px, py: box(px, py - top - 0.006, 0.75 * wide, 0.012, 0.006), "#fffaf2", clip=mouth
    )
    bend = 0.020 * (1 - p["mouth"])
    pen.draw(lambda px, py: smile(px, py - top, wide, bend, 0.0088), lips)


def _paint_head(p: Parameters, pen: Pen, colours: tuple) -> None:
    skin, cheek, hair, iris = colours
    w, h = p["width"], p["height"]
    for side in (-1, 1):
        pen.draw(
            lambda px, py, side=side: ellipse(px - side * 1.0 * w, py - 0.06 * h, 0.036, 0.050),
            skin,
            ball=(side * w, 0.06 * h, 0.05, 0.06),
            rim=0.015,
        )
        pen.draw(
            lambda px, py, side=side: circle(px - side * 1.04 * w, py - 0.06 * h - 0.058, 0.014),
            "#f7c948",
            ball=(side * 1.04 * w, 0.06 * h + 0.058, 0.016, 0.016),
            opacity=p["earring"],
        )

    def skull(px: Tensor, py: Tensor) -> Tensor:
        upper = ellipse(px, py + 0.12 * h, w, 0.90 * h)
        return smooth_union(upper, ellipse(px, py - 0.25 * h, 0.86 * w, 0.72 * h), 0.06)

    face = pen.draw(
        skull, skin, ball=(0.0, 0.0, 1.1 * w, 1.1 * h), depth=0.7, rim=0.02, shadow=0.18
    )
    for side in (-1, 1):
        pen.draw(
            lambda px, py, side=side: ellipse(px - side * 0.60 * w, py - 0.36 * h, 0.052, 0.042),
            cheek,
            opacity=0.5,
            soft=0.036,
            clip=face,
        )
    _paint_eyes(p, pen, iris, hair, skin)
    pen.draw(
        lambda px, py: ellipse(px, py - 0.22 * h, 0.024, 0.019),
        mix(skin, cheek, 0.42),
        ball=(0.0, 0.22 * h, 0.03, 0.03),
    )
    _paint_mouth(p, pen, mix(cheek, rgb("#7a2a34", skin.device), 0.55))
    _paint_fringe(p, pen, skull, hair)


def _paint_fringe(p: Parameters, pen: Pen, skull, hair: Tensor) -> None:
    """Paints the hair over the forehead, parted to one side."""
    w, h = p["width"], p["height"]
    parting = p["fringe"] * w

    def shape(px: Tensor, py: Tensor) -> Tensor:
        top = ellipse(px, py + 0.16 * h, 1.12 * w, 0.98 * h)
        across = (px - parting) / w
        edge = -0.66 * h + 0.34 * h * (1 - 1 / (1 + 1.6 * across * across)) * 1.7
        return intersection(top, (py - edge) * 0.75)

    pen.draw(shape, hair, ball=(0.0, -0.5 * h, 1.2 * w, 0.9 * h), rim=0.012, shadow=0.16)
    pen.draw(
        lambda px, py: smile(px - 0.1 * w, py + 0.80 * h, 0.55 * w, -0.035, 0.016),
        "#fff4e0",
        opacity=0.16,
        soft=0.012,
    )


def _paint(p: Parameters, canvas: Canvas) -> None:
    top, bottom, disc, shirt, collar = pick(p["wall"], _WALL)
    skin, cheek = pick(p["skin"], _SKIN)
    hair, iris = pick(p["hair_colour"], _HAIR)[0], pick(p["iris"], _IRIS)[0]
    canvas.backdrop(top, bottom)
    pen = canvas.pen()
    pen.draw(lambda px, py: circle(px - 0.5, py - 0.48, 0.43), disc)
    canvas.glow(0.5 + 0.5 * p["light"], 0.05, 0.75, "#fffbe8", 0.5)
    head = canvas.pen(_head(p))
    _paint_back(p, head, hair)
    _paint_body(p, pen, skin, shirt, collar)
    _paint_head(p, head, (skin, cheek, hair, iris))


def _move_head(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {"x": p["x"] + draw.swing(0.045, 0.08), "y": p["y"] + draw.between(-0.02, 0.03)}


def _tilt(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    turn = draw.between(0.20, 0.34)
    return {}, {"tilt": p["tilt"] + turn * (1 - 2 * (p["tilt"] > 0).float())}


def _hair(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    short, long = draw.between(0.10, 0.15), draw.between(0.24, 0.33)
    longer = draw.unit() < 0.6
    return {"hair": short.where(longer, long)}, {"hair": long.where(longer, short)}


def _close(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"mouth": draw.between(0.75, 1.0)}, {"mouth": 0.0 * p["x"]}


def _unbun(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"bun": draw.between(0.07, 0.09)}, {"bun": 0.0 * p["x"]}


def _open(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"mouth": 0.0 * p["x"]}, {"mouth": draw.between(0.75, 1.0)}


def _grow_bun(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"bun": 0.0 * p["x"]}, {"bun": draw.between(0.07, 0.09)}


FAMILY = Family(
    name="face",
    caption="an illustration of a person's face",
    parameters=_parameters,
    points=_points,
    paint=_paint,
    edits=(
        Edit("relocation", _move_head, ("nose", "chin", "left eye", "right eye"), ("collar",)),
        Edit("rotation", _tilt, ("crown", "left eye", "right eye", "nose"), ("collar",)),
        Edit("rescaling", _hair, ("left hair", "right hair"), ("nose", "chin", "collar")),
        Edit("removal", _close, ("lip",), ("nose", "left eye", "right eye")),
        Edit("removal", _unbun, ("bun",), ("nose", "forehead")),
        Edit("creation", _open, ("lip",), ("nose", "left eye", "right eye")),
        Edit("creation", _grow_bun, ("bun",), ("nose", "left eye", "right eye")),
    ),
)
