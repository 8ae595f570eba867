"""A still life: a bottle, a vase with a twig, fruits and a candle on a table."""

from __future__ import annotations

from torch import Tensor

from gooddrag.world.families.parts import leaf
from gooddrag.world.family import Draw, Edit, Family, Parameters, Point
from gooddrag.world.paint import Canvas, Pen, mix, pick, rgb
from gooddrag.world.sdf import Frame, box, capsule, circle, ellipse, smooth_union

_ROOM = (  # wall top, wall bottom, table, vase, vase band, cloth
    ("#cbdfe6", "#eef4f0", "#c99a6b", "#4f83a8", "#f3e4c4", "#f6efe0"),
    ("#f6d8c2", "#fcefe2", "#a9785a", "#6fa090", "#f7e8c8", "#fbf1e4"),
    ("#d9d3ea", "#f2effa", "#b98b66", "#d98f5f", "#fdeccb", "#f5f0fa"),
    ("#f5e3b4", "#fcf5de", "#9f6d4c", "#b8574f", "#f8dcb4", "#fdf6e2"),
    ("#cfe2c6", "#f1f7e8", "#c08d62", "#8a6fa8", "#efe0f6", "#f4f8ec"),
)
_FRUIT = (  # apple, pear, orange
    ("#d94f45", "#c8cc58", "#f29a3c"),
    ("#a9c653", "#e3b84a", "#f08a3a"),
    ("#c23f4f", "#dccf5a", "#f5b03f"),
    ("#e0694a", "#a8c060", "#eea040"),
)


def _parameters(draw: Draw) -> Parameters:
    return {
        "light": draw.between(-1, 1),
        "room": draw.unit(),
        "fruit": draw.unit(),
        "vase_x": draw.between(0.26, 0.33),
        "vase": draw.between(0.085, 0.110),
        "vase_height": draw.between(0.27, 0.32),
        "twig": draw.between(0.20, 0.25),
        "twig_angle": draw.between(-0.20, 0.20),
        "candle_x": draw.between(0.70, 0.78),
        "candle": draw.between(0.18, 0.25),
        "flame": draw.chance(0.6) * draw.between(0.085, 0.11),
        "pear_x": draw.between(0.50, 0.55),
        "pear": draw.between(0.085, 0.098),
        "pear_tilt": draw.between(-0.06, 0.06),
        "orange_x": draw.between(0.86, 0.90),
        "orange": draw.between(0.062, 0.075),
        "apple_x": draw.between(0.38, 0.48),
        "apple_y": draw.between(0.84, 0.88),
        "apple": draw.between(0.078, 0.090),
    }


_TABLE = 0.76  # where things in the second row stand


def _twig(p: Parameters) -> Frame:
    return Frame(p["vase_x"], _TABLE - p["vase_height"] + 0.03, p["twig_angle"])


def _pear(p: Parameters) -> Frame:
    return Frame(p["pear_x"], _TABLE + 0.015 + 0.0 * p["pear_x"], p["pear_tilt"])


def _points(p: Parameters) -> dict[str, Point]:
    zero = 0.0 * p["vase"]
    twig, pear = _twig(p), _pear(p)
    belly = _TABLE - 0.36 * p["vase_height"]
    wick = _TABLE - p["candle"]
    return {
        "apple": (p["apple_x"], p["apple_y"] - 0.9 * p["apple"]),
        "apple left": (p["apple_x"] - 0.8 * p["apple"], p["apple_y"] - 0.9 * p["apple"]),
        "apple right": (p["apple_x"] + 0.8 * p["apple"], p["apple_y"] - 0.9 * p["apple"]),
        "orange": (p["orange_x"], _TABLE + 0.06 - p["orange"]),
        "left belly": (p["vase_x"] - p["vase"] + 0.012, belly),
        "right belly": (p["vase_x"] + p["vase"] - 0.012, belly),
        "vase lip": (p["vase_x"], _TABLE - p["vase_height"] + 0.012),
        "vase middle": (p["vase_x"], belly),
        "twig tip": twig.picture(zero, -p["twig"] - 0.055),
        "twig middle": twig.picture(zero, -0.72 * p["twig"]),
        "pear stalk": pear.picture(zero, -2.75 * p["pear"]),
        "pear top": pear.picture(zero, -2.2 * p["pear"]),
        "pear": pear.picture(zero, -0.9 * p["pear"]),
        "flame": (p["candle_x"], wick - 0.012 - 0.95 * p["flame"]),
        "flame middle": (p["candle_x"], wick - 0.012 - 0.45 * p["flame"]),
        "candle": (p["candle_x"], wick + 0.035),
        "candle base": (p["candle_x"], _TABLE - 0.01 + zero),
    }


def _contact(p: Parameters, pen: Pen, x: Tensor, y: float | Tensor, width: Tensor) -> None:
    """Paints the soft shadow where something stands on the table."""
    shift = -0.35 * width * p["light"]
    pen.draw(
        lambda px, py: ellipse(px - x - shift, py - y, 1.25 * width, 0.32 * width),
        "#2a1f4a",
        opacity=0.36,
        soft=0.035,
    )


def _paint_vase(p: Parameters, canvas: Canvas, glaze: Tensor, band: Tensor) -> None:
    pen = canvas.pen()
    x, w, tall = p["vase_x"], p["vase"], p["vase_height"]
    _contact(p, pen, x, _TABLE - 0.004, w)
    twig = _twig(p)
    stick = canvas.pen(twig)
    stick.draw(lambda px, py: capsule(px, py, (0.0, 0.0), (0.0, -p["twig"]), 0.009), "#8a6a4a")
    for at, side in ((0.50, -1), (0.62, 1), (0.80, -1), (0.90, 1), (1.0, 0)):
        root = twig.picture(0.0 * w, -at * p["twig"])
        leaf(
            pen,
            Frame(root[0], root[1], p["twig_angle"] + side * 0.95),
            0.105 + 0.0 * w,
            0.030 + 0.0 * w,
            "#6f9f5f",
        )

    def shape(px: Tensor, py: Tensor) -> Tensor:
        belly = ellipse(px - x, py - _TABLE + 0.36 * tall, w, 0.37 * tall)
        neck = box(px - x, py - _TABLE + 0.72 * tall, 0.42 * w, 0.28 * tall, 0.012)
        return smooth_union(belly, neck, 0.05)

    body = pen.draw(shape, glaze, ball=(x, _TABLE - 0.4 * tall, w, 0.5 * tall), shadow=0.12)
    pen.draw(lambda px, py: (py - _TABLE + 0.36 * tall).abs() - 0.026, band, opacity=0.8, clip=body)
    pen.draw(
        lambda px, py: box(px - x, py - _TABLE + tall - 0.005, 0.52 * w, 0.017, 0.012),
        glaze,
        ball=(x, _TABLE - tall, 0.6 * w, 0.05),
        shadow=0.18,
    )
    pen.draw(
        lambda px, py: ellipse(
            px - x - 0.45 * w * p["light"], py - _TABLE + 0.50 * tall, 0.2 * w, 0.13 * tall
        ),
        "#ffffff",
        opacity=0.35,
        soft=0.02,
        clip=body,
    )


def _paint_candle(p: Parameters, canvas: Canvas, holder: Tensor) -> None:
    pen = canvas.pen()
    x, top, flame = p["candle_x"], _TABLE - p["candle"], p["flame"]
    _contact(p, pen, x, _TABLE, 0.085 + 0.0 * x)
    pen.draw(
        lambda px, py: box(px - x, py - (top + _TABLE) / 2, 0.036, p["candle"] / 2, 0.010),
        "#fdf3dc",
        ball=(x, top, 0.05, 0.6),
        shadow=0.12,
    )
    pen.draw(
        lambda px, py: ellipse(px - x, py - _TABLE + 0.012, 0.080, 0.022),
        holder,
        ball=(x, _TABLE, 0.09, 0.03),
        shadow=0.12,
    )
    pen.draw(
        lambda px, py: box(px - x, py - _TABLE + 0.035, 0.046, 0.020, 0.010),
        holder,
        ball=(x, _TABLE, 0.06, 0.03),
    )
    pen.draw(lambda px, py: capsule(px, py, (x, top), (x, top - 0.016), 0.0085), "#5a4038")
    lit = (flame / 0.08).clamp(0, 1)
    canvas.glow(x, top - 0.5 * flame, 0.24, "#fff0b8", 0.55 * lit)
    for part, colour in ((1.0, "#f79a3c"), (0.62, "#fde27a")):
        size = part * flame
        pen.draw(
            lambda px, py, size=size: smooth_union(
                circle(px - x, py - top + 0.012 + 0.34 * size, 0.30 * size),
                capsule(
                    px,
                    py,
                    (x, top - 0.012 - 0.4 * size),
                    (x, top - 0.012 - size),
                    0.25 * size,
                    0.03 * size,
                ),
                0.01,
            ),
            colour,
            opacity=(flame / 0.02).clamp(0, 1),
        )


def _paint_fruits(p: Parameters, canvas: Canvas, fruit: list[Tensor]) -> None:
    pen = canvas.pen()
    apple, pear, orange = fruit
    x, r = p["orange_x"], p["orange"]
    y = _TABLE + 0.06 - r
    _contact(p, pen, x, _TABLE + 0.055, r)
    pen.draw(lambda px, py: circle(px - x, py - y, r), orange, ball=(x, y, r, r), rim=0.02)
    pen.draw(lambda px, py: ellipse(px - x, py - y + 0.78 * r, 0.016, 0.009), "#7a8f3f")
    _contact(p, pen, p["pear_x"], _TABLE + 0.012, p["pear"])
    s = p["pear"]
    tilted = canvas.pen(_pear(p))
    tilted.draw(
        lambda px, py: capsule(px, py, (0.0, -2.2 * s), (0.12 * s, -2.8 * s), 0.010), "#7a5538"
    )
    tilted.draw(
        lambda px, py: smooth_union(
            circle(px, py + 0.95 * s, 0.98 * s), circle(px, py + 1.95 * s, 0.52 * s), 0.09
        ),
        pear,
        ball=(0.0, -1.2 * s, s, 1.4 * s),
        rim=0.02,
        shadow=0.10,
    )
    _paint_apple(p, canvas, apple)


def _paint_apple(p: Parameters, canvas: Canvas, colour: Tensor) -> None:
    pen = canvas.pen()
    x, base, r = p["apple_x"], p["apple_y"], p["apple"]
    _contact(p, pen, x, base - 0.01, r)
    y = base - 0.92 * r

    def shape(px: Tensor, py: Tensor) -> Tensor:
        left = ellipse(px - x + 0.36 * r, py - y, 0.66 * r, 0.92 * r)
        return smooth_union(left, ellipse(px - x - 0.36 * r, py - y, 0.66 * r, 0.92 * r), 0.02)

    body = pen.draw(shape, colour, ball=(x, y, r, r), rim=0.02, shadow=0.12)
    pen.draw(
        lambda px, py: ellipse(px - x, py - y + 0.82 * r, 0.30 * r, 0.10 * r),
        "#4a1f2a",
        opacity=0.35,
        soft=0.015,
        clip=body,
    )
    pen.draw(
        lambda px, py: capsule(px, py, (x, y - 0.75 * r), (x + 0.1 * r, y - 1.2 * r), 0.0095),
        "#6a4632",
    )
    leaf(pen, Frame(x + 0.04 * r, y - 0.95 * r, 1.1 + 0.0 * r), 0.75 * r, 0.22 * r, "#7fae55")
    pen.draw(
        lambda px, py: ellipse(
            px - x - 0.42 * r * p["light"], py - y + 0.42 * r, 0.24 * r, 0.20 * r
        ),
        "#ffffff",
        opacity=0.45,
        soft=0.018,
        clip=body,
    )


def _paint(p: Parameters, canvas: Canvas) -> None:
    top, bottom, table, glaze, band, cloth = pick(p["room"], _ROOM)
    canvas.backdrop(top, bottom)
    pen = canvas.pen()
    canvas.glow(0.5 + 0.5 * p["light"], 0.0, 0.9, "#fffbe8", 0.6)
    pen.draw(
        lambda px, py: box(px - 0.62, py - 0.24, 0.15, 0.12, 0.012), cloth, shadow=0.14, opacity=1.0
    )
    pen.draw(lambda px, py: box(px - 0.62, py - 0.24, 0.122, 0.092, 0.006), mix(top, glaze, 0.30))
    hills = mix(top, glaze, 0.6)
    inner = pen.cover(lambda px, py: box(px - 0.62, py - 0.24, 0.122, 0.092, 0.006))
    pen.draw(lambda px, py: circle(px - 0.56, py - 0.42, 0.15), hills, clip=inner)
    pen.draw(lambda px, py: circle(px - 0.68, py - 0.20, 0.026), mix(cloth, table, 0.3), clip=inner)
    board = pen.draw(lambda px, py: 0.66 - py, table, ball=(0.5, 0.85, 1.2, 0.34), depth=0.5)
    for k, y in enumerate((0.745, 0.83, 0.915)):
        pen.draw(
            lambda px, py, k=k, y=y: (py - y - 0.006 * (px * 6 + 2.1 * k).sin()).abs() - 0.008,
            "#4a2a20",
            opacity=0.10,
            clip=board,
        )
    pen.draw(lambda px, py: (py - 0.665).abs() - 0.010, "#fff4dc", opacity=0.25)
    holder = rgb("#d9a945", pen.x.device)
    _paint_vase(p, canvas, glaze, band)
    _paint_candle(p, canvas, holder)
    _paint_fruits(p, canvas, pick(p["fruit"], _FRUIT))


def _move_apple(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {
        "apple_x": p["apple_x"] + draw.between(0.08, 0.18),
        "apple_y": p["apple_y"] + draw.between(-0.01, 0.06),
    }


def _move_orange(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {"orange_x": p["orange_x"] - draw.between(0.09, 0.18)}


def _turn_twig(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    turn = draw.between(0.28, 0.50)
    return {}, {"twig_angle": p["twig_angle"] + turn * (1 - 2 * (p["twig_angle"] > 0).float())}


def _tip_pear(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {"pear_tilt": p["pear_tilt"] + draw.swing(0.26, 0.42)}


def _widen(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    slim, wide = draw.between(0.075, 0.085), draw.between(0.125, 0.14)
    out = draw.unit() < 0.6
    # The pear keeps clear so that it never hides the vase's belly.
    room = {"vase_x": 0.24 + 0.0 * slim, "pear_x": 0.56 + 0.0 * slim, "apple_x": 0.43 + 0.0 * slim}
    return room | {"vase": slim.where(out, wide)}, {"vase": wide.where(out, slim)}


def _candle(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    short, tall = draw.between(0.13, 0.17), draw.between(0.24, 0.32)
    up = draw.unit() < 0.6
    return {"candle": short.where(up, tall)}, {"candle": tall.where(up, short)}


def _snuff(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"flame": draw.between(0.085, 0.115)}, {"flame": 0.0 * p["flame"]}


def _light(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"flame": 0.0 * p["flame"]}, {"flame": draw.between(0.085, 0.115)}


FAMILY = Family(
    name="fruits",
    caption="an illustration of a still life with fruits, a vase and a candle on a table",
    parameters=_parameters,
    points=_points,
    paint=_paint,
    edits=(
        Edit("relocation", _move_apple, ("apple", "apple left", "apple right"), ("vase middle",)),
        Edit("relocation", _move_orange, ("orange",), ("vase middle", "apple")),
        Edit("rotation", _turn_twig, ("twig tip", "twig middle"), ("vase middle", "vase lip")),
        Edit("rotation", _tip_pear, ("pear stalk", "pear top"), ("apple", "vase middle")),
        Edit("rescaling", _widen, ("left belly", "right belly"), ("vase lip", "apple")),
        Edit("rescaling", _candle, ("candle",), ("candle base", "orange")),
        Edit("removal", _snuff, ("flame", "flame middle"), ("candle", "orange")),
        Edit("creation", _light, ("flame",), ("candle base", "orange")),
    ),
)
