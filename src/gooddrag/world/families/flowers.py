"""Flowers in a pot."""

from __future__ import annotations

from torch import Tensor

from gooddrag.world.families.parts import leaf
from gooddrag.world.family import Draw, Edit, Family, Parameters, Point
from gooddrag.world.paint import Canvas, Pen, mix, pick, rgb
from gooddrag.world.sdf import Frame, box, capsule, circle, ellipse, petals

_ROOM = (  # wall top, wall bottom, table, pot, pot band
    ("#cfe6ee", "#f3f8f4", "#d8a878", "#d9784f", "#f2b98a"),
    ("#fbe0cc", "#fdf3e6", "#b98a68", "#5f8fb4", "#cfe0ee"),
    ("#e2dcf2", "#f7f2fa", "#c99f78", "#f0c65a", "#fbe9b4"),
    ("#dcecc8", "#f6f8e6", "#c9996a", "#c65f54", "#f0b0a0"),
    ("#fbeab9", "#fdf7e2", "#b5805c", "#5fa392", "#bfe2d4"),
)
_BLOOM = (  # petals of the three flowers, heart
    ("#ee6f7c", "#f7b23f", "#f39ab0", "#fbe08a"),
    ("#8f7fd0", "#f08fb8", "#6fa3e0", "#fce38f"),
    ("#f58a4f", "#f9c846", "#e9586a", "#7a4a34"),
    ("#fdfaf2", "#f7c24a", "#f6a5b8", "#f2b53a"),
    ("#e4609a", "#b07fd4", "#f59a76", "#fdeaa0"),
)
_GREEN = (("#6aa84f", "#4f8f5a"), ("#7fb56a", "#5a9a6f"), ("#5c9f6a", "#8ab04f"))


def _parameters(draw: Draw) -> Parameters:
    return {
        "light": draw.between(-1, 1),
        "room": draw.unit(),
        "bloom": draw.unit(),
        "green": draw.unit(),
        "x": draw.between(0.45, 0.55),
        "pot": draw.between(0.125, 0.155),
        "pot_height": draw.between(0.17, 0.20),
        "left": draw.between(0.27, 0.36),
        "middle": draw.between(0.40, 0.48),
        "right": draw.between(0.27, 0.36),
        "left_angle": draw.between(-0.62, -0.48),
        "middle_angle": draw.between(-0.08, 0.08),
        "right_angle": draw.between(0.48, 0.62),
        "head": draw.between(0.075, 0.090),
        "heart": draw.between(0.40, 0.52),
        "roundness": draw.between(0.30, 0.50),
        "bee_x": draw.between(0.13, 0.22),
        "bee_y": draw.between(0.13, 0.22),
        "bee": draw.between(0.045, 0.055),
        "window": draw.chance(0.6),
    }


def _stem(p: Parameters, name: str) -> Frame:
    """The frame of a flower: its origin at the root in the pot, the head at (0, -length)."""
    return Frame(p["x"], _rim(p) + 0.03, p[name + "_angle"])


def _rim(p: Parameters) -> Tensor:
    """Height of the pot's upper rim."""
    return 0.88 - p["pot_height"]


def _points(p: Parameters) -> dict[str, Point]:
    points = {
        "bee": (p["bee_x"], p["bee_y"]),
        "left rim": (p["x"] - 1.0 * p["pot"], _rim(p) + 0.02),
        "right rim": (p["x"] + 1.0 * p["pot"], _rim(p) + 0.02),
        "pot": (p["x"], 0.82 + 0 * p["x"]),
    }
    for name in ("left", "middle", "right"):
        frame = _stem(p, name)
        zero = 0.0 * p["x"]
        points[name] = frame.picture(zero, -p[name])
        points[name + " petal"] = frame.picture(zero, -p[name] - 0.78 * p["head"])
    return points


def _paint_flower(p: Parameters, canvas: Canvas, name: str, colours: tuple) -> None:
    petal, heart, green, leaf_green = colours
    frame, size = _stem(p, name), p[name]
    pen = canvas.pen(frame)
    pen.draw(
        lambda px, py: capsule(px, py, (0.0, 0.0), (0.0, -size), 0.014, 0.011),
        green,
        ball=(0.0, 0.0, 0.02, 3.0),
        shadow=0.10,
    )
    for side, at in ((-1, 0.42), (1, 0.55)):
        root = frame.picture(0.0 * size, -at * size)
        leaf(
            pen,
            Frame(root[0], root[1], p[name + "_angle"] + side * 0.95),
            0.35 * size,
            0.095 * size,
            leaf_green,
        )
    # A flower that has sunk into the pot shrinks along with its stem.
    head = p["head"] * (0.35 + size / 0.26).clamp(0, 1)

    def blossom(px: Tensor, py: Tensor) -> Tensor:
        return petals(px, py + size, head, 7, p["roundness"])

    pen.draw(blossom, petal, ball=(0.0, -size, head, head), shadow=0.20)
    pen.draw(
        lambda px, py: circle(px, py + size, 0.72 * head),
        mix(petal, heart, 0.25),
        soft=0.03,
        opacity=0.6,
    )
    inner = p["heart"] * head
    pen.draw(
        lambda px, py: circle(px, py + size, inner),
        heart,
        ball=(0.0, -size, inner, inner),
        shadow=0.15,
    )


def _paint_pot(p: Parameters, pen: Pen, clay: Tensor, band: Tensor) -> None:
    x, w, rim = p["x"], p["pot"], _rim(p)
    middle = (rim + 0.88) / 2

    def body(px: Tensor, py: Tensor) -> Tensor:
        taper = 1 - 0.28 * ((py - rim) / p["pot_height"]).clamp(0, 1)
        return box((px - x) / taper, py - middle, w, p["pot_height"] / 2, 0.02)

    pen.draw(
        lambda px, py: ellipse(px - x + 0.05 * p["light"], py - 0.88, 1.15 * w, 0.035),
        "#2a1f4a",
        opacity=0.32,
        soft=0.04,
    )
    cover = pen.draw(body, clay, ball=(x, middle, 1.1 * w, 0.18))
    pen.draw(lambda px, py: (py - middle - 0.02).abs() - 0.020, band, clip=cover, opacity=0.75)
    pen.draw(
        lambda px, py: box(px - x, py - rim - 0.016, w + 0.018, 0.024, 0.012),
        clay,
        ball=(x, rim, 1.1 * w, 0.08),
        shadow=0.25,
    )


def _paint_bee(p: Parameters, canvas: Canvas) -> None:
    s = p["bee"]
    pen = canvas.pen(Frame(p["bee_x"], p["bee_y"], 0.25 + 0.0 * s))
    for at in (-0.25, 0.30):
        pen.draw(
            lambda px, py, at=at: ellipse(px - at * s, py + 0.85 * s, 0.36 * s, 0.58 * s),
            "#ffffff",
            opacity=0.8,
            rim=0.012,
            shadow=0.08,
        )
    body = pen.draw(
        lambda px, py: ellipse(px, py, s, 0.70 * s),
        "#f9c43f",
        ball=(0.0, 0.0, s, 0.7 * s),
        shadow=0.15,
    )
    for at in (-0.42, 0.18):
        pen.draw(
            lambda px, py, at=at: box(px - at * s, py, 0.15 * s, s, 0.003), "#5a4038", clip=body
        )
    pen.draw(lambda px, py: circle(px - 0.66 * s, py + 0.12 * s, 0.010), "#3a2a2a", clip=body)


def _paint(p: Parameters, canvas: Canvas) -> None:
    top, bottom, table, clay, band = pick(p["room"], _ROOM)
    first, second, third, heart = pick(p["bloom"], _BLOOM)
    green, leaf_green = pick(p["green"], _GREEN)
    canvas.backdrop(top, bottom)
    pen = canvas.pen()
    white = rgb("#ffffff", pen.x.device)
    pen.draw(
        lambda px, py: circle(px - 0.5, py - 0.46, 0.38),
        mix(bottom, white, 0.5),
        opacity=p["window"] * 0.8,
    )
    canvas.glow(0.5 + 0.5 * p["light"], 0.0, 0.8, "#fffbe8", 0.55)
    pen.draw(lambda px, py: 0.84 - py, table, ball=(0.5, 0.95, 1.0, 0.22), depth=0.5)
    pen.draw(
        lambda px, py: (py - 0.925 - 0.004 * (px * 8).sin()).abs() - 0.008, "#4a2a20", opacity=0.10
    )
    greens = (green, leaf_green)
    _paint_flower(p, canvas, "middle", (second, heart, *greens))
    _paint_flower(p, canvas, "left", (first, heart, *greens))
    _paint_flower(p, canvas, "right", (third, heart, *greens))
    _paint_pot(p, pen, clay, band)
    _paint_bee(p, canvas)


def _move_bee(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {
        "bee_x": p["bee_x"] + draw.between(-0.03, 0.12),
        "bee_y": p["bee_y"] + draw.between(0.05, 0.16),
    }


def _move_pot(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {"x": p["x"] + draw.between(0.06, 0.13) * (1 - 2 * (p["x"] > 0.5).float())}


def _bend(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {"middle_angle": p["middle_angle"] + draw.swing(0.18, 0.32)}


def _bend_left(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {"left_angle": p["left_angle"] - draw.between(0.30, 0.50)}


def _taller(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    low, high = draw.between(0.32, 0.38), draw.between(0.47, 0.52)
    up = draw.unit() < 0.6
    return {"middle": low.where(up, high)}, {"middle": high.where(up, low)}


def _wider(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"pot": draw.between(0.10, 0.115)}, {"pot": draw.between(0.165, 0.20)}


def _sink(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"right": draw.between(0.20, 0.225)}, {"right": 0.0 * p["x"]}


def _grow(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"right": draw.between(0.16, 0.18)}, {"right": draw.between(0.32, 0.38)}


FAMILY = Family(
    name="flowers",
    caption="an illustration of flowers in a pot",
    parameters=_parameters,
    points=_points,
    paint=_paint,
    edits=(
        Edit("relocation", _move_bee, ("bee",), ("middle", "left")),
        Edit("relocation", _move_pot, ("left", "middle", "right", "left rim", "right rim"), ()),
        Edit("rotation", _bend, ("middle", "middle petal"), ("left", "right", "pot")),
        Edit("rotation", _bend_left, ("left", "left petal"), ("middle", "right", "pot")),
        Edit("rescaling", _taller, ("middle", "middle petal"), ("left", "right", "pot")),
        Edit("rescaling", _wider, ("left rim", "right rim"), ("middle", "pot")),
        Edit("removal", _sink, ("right",), ("middle", "left", "pot")),
        Edit("creation", _grow, ("right",), ("middle", "left", "pot")),
    ),
)
