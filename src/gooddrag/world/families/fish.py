"""A fish under water."""

from __future__ import annotations

from torch import Tensor

from gooddrag.world.families.parts import eye
from gooddrag.world.family import Draw, Edit, Family, Parameters, Point
from gooddrag.world.paint import Canvas, Pen, mix, pick, rgb
from gooddrag.world.sdf import Frame, capsule, circle, ellipse, smile, smooth_union, triangle

_SEA = (  # water top, water bottom, far sand, sand, weed, coral
    ("#8fdbe0", "#2f86b0", "#6fb3b5", "#ecd9a8", "#4f9f78", "#f0857a"),
    ("#a8e0d0", "#3a8f9f", "#7cbda8", "#f0e0b4", "#5fa860", "#e87fa0"),
    ("#a9cdf0", "#4a6fb5", "#7f9fcb", "#e6d6bb", "#5aa08f", "#f2a35f"),
    ("#c5e8c8", "#3f9a94", "#8ac6a4", "#f2deac", "#3f8a78", "#e86a5f"),
    ("#d5c8f0", "#6a6fc0", "#9a97cf", "#ecd9c4", "#4f9f98", "#f296a8"),
)
_FISH = (  # body, belly, fins, stripes
    ("#f5923f", "#fde3b0", "#f7b84a", "#fff6e6"),
    ("#f7c443", "#fff3c4", "#f0924a", "#5a86b8"),
    ("#ea6f72", "#fdd8c8", "#f5a45f", "#fff0e6"),
    ("#7f8fe0", "#dfe6fb", "#f2a6b8", "#fdf3d8"),
    ("#4fb5a5", "#e2f6dc", "#f5c452", "#fdf6e0"),
)


_GAPE = 0.062  # height of the widest open mouth


def _parameters(draw: Draw) -> Parameters:
    return {
        "light": draw.between(-1, 1),
        "sea": draw.unit(),
        "fish": draw.unit(),
        "x": draw.between(0.46, 0.54),
        "y": draw.between(0.42, 0.48),
        "tilt": draw.between(-0.10, 0.10),
        "long": draw.between(0.20, 0.23),
        "tall": draw.between(0.125, 0.15),
        "tail": draw.between(0.11, 0.15),
        "dorsal": draw.between(0.07, 0.12),
        "fin": draw.between(0.2, 0.7),
        "mouth": draw.chance(0.5) * draw.between(0.5, 1.0),
        "stripes": draw.chance(0.7),
        "weed_x": draw.between(0.12, 0.18),
        "weed": draw.between(0.26, 0.36),
        "weed_turn": draw.between(-0.10, 0.10),
        "coral": draw.between(0.09, 0.12),
        "star_x": draw.between(0.36, 0.60),
        "star_y": draw.between(0.90, 0.92),
        "bubble_x": draw.between(0.14, 0.20),
        "bubble_y": draw.between(0.22, 0.30),
        "bubble": draw.between(0.032, 0.042),
        "dune": draw.unit(),
    }


def _body(p: Parameters) -> Frame:
    """The fish's frame: it looks to the left (negative x)."""
    return Frame(p["x"], p["y"], p["tilt"])


def _weed(p: Parameters) -> Frame:
    return Frame(p["weed_x"], 0.88 + 0.0 * p["weed"], p["weed_turn"])


def _fin(p: Parameters) -> Frame:
    """Frame of the side fin at its root; the fin points along positive x."""
    root = _body(p).picture(0.02 + 0.0 * p["fin"], 0.25 * p["tall"])
    return Frame(root[0], root[1], p["tilt"] + p["fin"])


def _points(p: Parameters) -> dict[str, Point]:
    body, long, tall = _body(p), p["long"], p["tall"]
    zero = 0.0 * long
    weed, fin = _weed(p), _fin(p)
    return {
        "eye": body.picture(-0.52 * long, -0.27 * tall),
        "belly": body.picture(0.05 * long, 0.6 * tall),
        "upper tail": body.picture(0.93 * long + p["tail"], -0.78 * p["tail"]),
        "lower tail": body.picture(0.93 * long + p["tail"], 0.78 * p["tail"]),
        "dorsal": body.picture(0.26 * long, -0.86 * tall - p["dorsal"]),
        "nose": body.picture(-0.95 * long, zero),
        "lip": body.picture(-0.60 * long, 0.22 * tall + _GAPE * p["mouth"] + 0.012),
        "fin": fin.picture(0.088 + zero, zero),
        "weed": weed.picture(zero, -p["weed"] + 0.012),
        "weed middle": weed.picture(zero, -0.62 * p["weed"]),
        "bubble": (p["bubble_x"], p["bubble_y"]),
        "star": (p["star_x"], p["star_y"]),
        "coral": (0.86 + zero, 0.90 - 2.0 * p["coral"]),
    }


def _paint_weed(p: Parameters, canvas: Canvas, colour: Tensor) -> None:
    pen = canvas.pen(_weed(p))
    size = p["weed"]
    width = 0.024 * (size / 0.1).clamp(0, 1)
    for offset, part, wide in ((-0.042, 0.68, 0.85), (0.048, 0.55, 0.8), (0.0, 1.0, 1.0)):
        pen.draw(
            lambda px, py, offset=offset, part=part, wide=wide: (
                capsule(
                    px
                    - 0.35 * offset
                    - offset * (-py / (part * size + 0.02)).clamp(0, 1)
                    - 0.014
                    * (py * 20 + 9 * offset).sin()
                    * (-py / 0.1).clamp(0, 1)
                    * (1 + py / (part * size + 1e-3)).clamp(0, 1),
                    py,
                    (0.0, 0.02),
                    (0.0, -part * size + 0.012),
                    width * wide,
                    0.5 * width,
                )
                * 0.9
            ),
            mix(colour, rgb("#fff6c0", pen.x.device), 0.0 if part == 1.0 else 0.15),
            ball=(0.0, -0.5 * size, 0.06, size + 0.05),
            shadow=0.10,
        )


def _paint_coral(p: Parameters, pen: Pen, colour: Tensor) -> None:
    s = p["coral"]
    x, base = 0.86, 0.90

    def shape(px: Tensor, py: Tensor) -> Tensor:
        px, py = px - x, py - base
        trunk = capsule(px, py, (0.0, 0.03), (0.0, -2.0 * s + 0.02), 0.026, 0.020)
        left = capsule(px, py, (0.0, -0.5 * s), (-0.55 * s, -1.45 * s), 0.021, 0.017)
        right = capsule(px, py, (0.0, -0.8 * s), (0.55 * s, -1.7 * s), 0.020, 0.016)
        return smooth_union(smooth_union(trunk, left, 0.02), right, 0.02)

    pen.draw(shape, colour, ball=(x, base - s, 0.1, 0.2), rim=0.012, shadow=0.14)


def _paint_fins(p: Parameters, pen: Pen, colour: Tensor) -> None:
    long, tall, tail = p["long"], p["tall"], p["tail"]
    for side in (-1, 1):
        pen.draw(
            lambda px, py, side=side: (
                capsule(
                    px,
                    py,
                    (0.86 * long, 0.0),
                    (0.93 * long + 0.80 * tail, side * 0.62 * tail),
                    0.022,
                    0.36 * tail,
                )
                * 0.9
            ),
            colour,
            ball=(long + 0.5 * tail, 0.0, tail, tail),
            rim=0.02,
            shadow=0.12,
        )
    dorsal = p["dorsal"]
    pen.draw(
        lambda px, py: triangle(
            px,
            py,
            (-0.36 * long, -0.70 * tall),
            (0.55 * long, -0.55 * tall),
            (0.26 * long, -0.86 * tall - dorsal + 0.012),
            0.022,
        ),
        colour,
        ball=(0.1 * long, -tall, 0.6 * long, tall),
        rim=0.02,
        shadow=0.12,
    )
    pen.draw(
        lambda px, py: triangle(
            px,
            py,
            (-0.05 * long, 0.75 * tall),
            (0.40 * long, 0.70 * tall),
            (0.36 * long, 1.30 * tall),
            0.018,
        ),
        colour,
        ball=(0.2 * long, tall, 0.4 * long, tall),
        rim=0.02,
    )


def _paint_fish(p: Parameters, canvas: Canvas, colours: list[Tensor]) -> None:
    skin, belly, fins, stripes = colours
    pen = canvas.pen(_body(p))
    long, tall = p["long"], p["tall"]
    _paint_fins(p, pen, fins)
    body = pen.draw(
        lambda px, py: smooth_union(
            ellipse(px + 0.10 * long, py, 0.92 * long, tall),
            ellipse(px - 0.45 * long, py, 0.62 * long, 0.46 * tall),
            0.08,
        ),
        skin,
        ball=(0.0, 0.0, long, tall),
        rim=0.025,
        shadow=0.16,
    )
    pen.draw(
        lambda px, py: ellipse(px + 0.2 * long, py - 0.85 * tall, 0.75 * long, 0.52 * tall),
        belly,
        soft=0.06,
        opacity=0.9,
        clip=body,
    )
    for at, width in ((-0.16, 0.022), (0.30, 0.020), (0.66, 0.016)):
        pen.draw(
            lambda px, py, at=at, width=width: (
                (px - at * long - 0.22 * (py / tall) ** 2 * -0.12).abs() - width
            ),
            stripes,
            opacity=0.85 * p["stripes"],
            clip=body,
        )
    side_fin = canvas.pen(_fin(p))
    side_fin.draw(
        lambda px, py: ellipse(px - 0.045, py, 0.056, 0.032),
        fins,
        ball=(0.045, 0.0, 0.06, 0.04),
        rim=0.015,
        shadow=0.20,
    )
    _paint_mouth(p, pen, body)
    eye(
        pen,
        -0.52 * long,
        -0.27 * tall,
        0.036 + 0.0 * long,
        0.039 + 0.0 * long,
        "#4a6a86",
        (-0.006, 0.0),
    )


def _paint_mouth(p: Parameters, pen: Pen, body: Tensor) -> None:
    long, tall = p["long"], p["tall"]
    half, shown = 0.5 * _GAPE * p["mouth"], (p["mouth"] / 0.1).clamp(0, 1)
    x, top = -0.60 * long, 0.22 * tall
    pen.draw(
        lambda px, py: ellipse(px + 0.34 * long, py - 0.16 * tall, 0.034, 0.026),
        "#f27f7a",
        opacity=0.55,
        soft=0.024,
        clip=body,
    )
    mouth = (
        pen.draw(
            lambda px, py: ellipse(px - x, py - top - half, 0.032, half + 0.002),
            "#7c2f3c",
            opacity=shown,
            clip=body,
        )
        * shown
    )
    pen.draw(
        lambda px, py: ellipse(px - x, py - top - 1.8 * half, 0.026, 0.020), "#f2838a", clip=mouth
    )
    pen.draw(
        lambda px, py: smile(px - x, py - top, 0.036, 0.012 * (1 - p["mouth"]), 0.0082),
        "#6a3a40",
        clip=body,
    )


def _paint_star(p: Parameters, pen: Pen, colour: Tensor) -> None:
    x, y = p["star_x"], p["star_y"]

    def shape(px: Tensor, py: Tensor) -> Tensor:
        arms = capsule(px - x, py - y, (0.0, 0.0), (0.0, -0.038), 0.020, 0.011)
        for end in ((0.044, -0.012), (-0.044, -0.012), (0.028, 0.030), (-0.028, 0.030)):
            arms = smooth_union(arms, capsule(px - x, py - y, (0.0, 0.0), end, 0.020, 0.011), 0.012)
        return arms

    pen.draw(shape, colour, ball=(x, y, 0.06, 0.06), rim=0.012, shadow=0.22)


def _paint(p: Parameters, canvas: Canvas) -> None:
    top, bottom, far, sand, weed, coral = pick(p["sea"], _SEA)
    canvas.backdrop(top, bottom, 1.1)
    pen = canvas.pen()
    canvas.glow(0.5 + 0.5 * p["light"], -0.05, 0.75, "#f4fff0", 0.6)
    shift = 0.25 * p["light"]
    for at in (0.12, 0.38, 0.66):
        pen.draw(
            lambda px, py, at=at: (
                (px - at - 0.15 * p["light"] + shift * py).abs() - 0.05 - 0.05 * py
            ),
            "#ffffff",
            opacity=0.16 * (1 - canvas.y),
            soft=0.05,
        )
    phase = p["dune"] * 6.283
    pen.draw(
        lambda px, py: (0.80 + 0.035 * (px * 7 + phase).sin() - py) * 0.95, mix(far, bottom, 0.3)
    )
    pen.draw(
        lambda px, py: (0.875 - 0.018 * (px * 6 + phase).sin() - py) * 0.95,
        sand,
        ball=(0.5, 0.97, 1.2, 0.2),
        depth=0.6,
        shadow=0.10,
    )
    _paint_weed(p, canvas, weed)
    _paint_coral(p, pen, coral)
    _paint_star(p, pen, mix(coral, sand, 0.35))
    for k, (dx, dy, part) in enumerate(((0.0, 0.0, 1.0), (0.065, 0.085, 0.6), (0.015, 0.15, 0.45))):
        x, y = (p["bubble_x"], p["bubble_y"]) if k == 0 else (0.06 + dx, 0.32 + dy)
        r = part * p["bubble"]
        pen.draw(
            lambda px, py, x=x, y=y, r=r: circle(px - x, py - y, r),
            "#ffffff",
            opacity=0.40,
            rim=0.012,
        )
        pen.draw(
            lambda px, py, x=x, y=y, r=r: circle(px - x + 0.32 * r, py - y + 0.35 * r, 0.26 * r),
            "#ffffff",
            opacity=0.9,
        )
    _paint_fish(p, canvas, pick(p["fish"], _FISH))


def _move_fish(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {
        "x": p["x"] - draw.between(0.02, 0.09) * (1 - 2 * (p["x"] < 0.47).float()),
        "y": p["y"] + draw.swing(0.06, 0.13),
    }


def _move_star(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {
        "star_x": p["star_x"] + draw.between(0.08, 0.18) * (1 - 2 * (p["star_x"] > 0.48).float())
    }


def _tilt(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    turn = draw.between(0.25, 0.36)
    return {}, {"tilt": p["tilt"] + turn * (1 - 2 * (p["tilt"] > 0).float())}


def _sway(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    # The weed is short and the fish high up so that it never hides the weed's tip.
    before = {"weed": draw.between(0.23, 0.28), "y": 0.42 + 0.0 * p["y"]}
    return before, {"weed_turn": p["weed_turn"] + draw.between(0.28, 0.40)}


def _tail(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    small, large = draw.between(0.085, 0.10), draw.between(0.155, 0.18)
    up = draw.unit() < 0.6
    return {"tail": small.where(up, large)}, {"tail": large.where(up, small)}


def _dorsal(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"dorsal": draw.between(0.04, 0.06)}, {"dorsal": draw.between(0.13, 0.17)}


def _close(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"mouth": draw.between(0.75, 1.0)}, {"mouth": 0.0 * p["x"]}


def _fold(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"dorsal": draw.between(0.10, 0.15)}, {"dorsal": -0.30 * p["tall"]}


def _open(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"mouth": 0.0 * p["x"]}, {"mouth": draw.between(0.75, 1.0)}


def _grow(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"weed": draw.between(0.09, 0.12)}, {"weed": draw.between(0.27, 0.315)}


FAMILY = Family(
    name="fish",
    caption="an illustration of a fish under water",
    parameters=_parameters,
    points=_points,
    paint=_paint,
    edits=(
        Edit("relocation", _move_fish, ("eye", "belly", "upper tail", "lower tail"), ("star",)),
        Edit("relocation", _move_star, ("star",), ("belly", "coral")),
        Edit("rotation", _tilt, ("nose", "upper tail", "lower tail", "dorsal"), ("star",)),
        Edit("rotation", _sway, ("weed", "weed middle"), ("star", "belly")),
        Edit("rescaling", _tail, ("upper tail", "lower tail"), ("eye", "belly")),
        Edit("rescaling", _dorsal, ("dorsal",), ("eye", "belly")),
        Edit("removal", _close, ("lip",), ("eye", "belly")),
        Edit("removal", _fold, ("dorsal",), ("eye", "belly")),
        Edit("creation", _open, ("lip",), ("eye", "belly")),
        Edit("creation", _grow, ("weed",), ("star", "belly")),
    ),
)
