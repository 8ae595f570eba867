"""A living room with a floor lamp, an armchair, a picture and a plant."""

from __future__ import annotations

from torch import Tensor

from gooddrag.world.families.parts import leaf
from gooddrag.world.family import Draw, Edit, Family, Parameters, Point
from gooddrag.world.paint import Canvas, Pen, mix, pick, rgb
from gooddrag.world.sdf import Frame, box, capsule, circle, ellipse, triangle

_ROOM = (  # wall top, wall bottom, floor, rug, chair, cushion, shade, pot
    ("#c4dcdf", "#e6f1ec", "#c89b6d", "#f0d9b5", "#d9745a", "#f6d27a", "#fbe9c0", "#5b8a8f"),
    ("#f4d6bf", "#fbebdc", "#a97c5c", "#e9c3a2", "#4f8791", "#f2b45f", "#fdf0cf", "#b55f4f"),
    ("#d2cfe8", "#eeecf7", "#b58d6c", "#d9cbe6", "#7d73b5", "#f4c2c2", "#fbe7b8", "#d9975f"),
    ("#f4e2ae", "#fbf3d8", "#a8764f", "#f3d28a", "#5f9470", "#f09a6f", "#fff5dc", "#5578a3"),
    ("#c8dcb8", "#eaf3dd", "#b98a60", "#e2e3b6", "#c9875f", "#7fa8a0", "#fdf1d2", "#9a5f7a"),
)
_FLOOR = 0.70  # where the wall meets the floor


def _parameters(draw: Draw) -> Parameters:
    return {
        "light": draw.between(-1, 1),
        "room": draw.unit(),
        "lamp_x": draw.between(0.20, 0.27),
        "lamp": draw.between(0.46, 0.54),
        "shade": draw.between(0.085, 0.105),
        "shade_tilt": draw.between(-0.08, 0.08),
        "glow": draw.between(0.5, 0.9),
        "chair_x": draw.between(0.52, 0.60),
        "chair": draw.between(0.15, 0.175),
        "back": draw.between(0.25, 0.31),
        "cushion": draw.between(0.045, 0.060),
        "picture_x": draw.between(0.50, 0.66),
        "picture_y": draw.between(0.20, 0.25),
        "picture_w": draw.between(0.085, 0.11),
        "picture_h": draw.between(0.075, 0.095),
        "picture_tilt": draw.between(-0.03, 0.03),
        "plant_x": draw.between(0.83, 0.88),
        "plant": draw.between(0.22, 0.28),
        "spread": draw.between(0.9, 1.1),
        "rug": draw.between(0.30, 0.36),
    }


def _shade(p: Parameters) -> Frame:
    """Frame of the lamp shade; it turns about the pole's end."""
    return Frame(p["lamp_x"], 0.86 - p["lamp"], p["shade_tilt"])


def _picture(p: Parameters) -> Frame:
    return Frame(p["picture_x"], p["picture_y"], p["picture_tilt"])


def _leaf(p: Parameters, angle: float, part: float) -> tuple[Frame, Tensor]:
    """Frame and length of a leaf of the plant."""
    return Frame(p["plant_x"], 0.715 + 0.0 * p["plant"], angle * p["spread"]), part * p["plant"]


_LEAVES = ((-0.85, 0.72), (0.78, 0.70), (-0.42, 0.90), (0.40, 0.88), (0.0, 1.0))


def _points(p: Parameters) -> dict[str, Point]:
    zero = 0.0 * p["lamp"]
    shade, s = _shade(p), p["shade"]
    picture = _picture(p)
    w, h = p["picture_w"], p["picture_h"]
    tip, length = _leaf(p, *_LEAVES[4])
    left, left_length = _leaf(p, *_LEAVES[2])
    right, right_length = _leaf(p, *_LEAVES[3])
    return {
        "shade left": shade.picture(-0.98 * s, 0.50 * s),
        "shade right": shade.picture(0.98 * s, 0.50 * s),
        "shade top": shade.picture(zero, -0.92 * s),
        "pole": (p["lamp_x"], 0.74 + zero),
        "base": (p["lamp_x"], 0.855 + zero),
        "picture": picture.picture(zero, zero),
        "picture left": picture.picture(-w, -h),
        "picture right": picture.picture(w, -h),
        "picture low left": picture.picture(-w, h),
        "picture low right": picture.picture(w, h),
        "chair top": (p["chair_x"], 0.715 - p["back"] + 0.014),
        "chair back left": (p["chair_x"] - 0.55 * p["chair"], 0.715 - p["back"] + 0.014),
        "chair back right": (p["chair_x"] + 0.55 * p["chair"], 0.715 - p["back"] + 0.014),
        "seat": (p["chair_x"], 0.765 + zero),
        "left arm": (p["chair_x"] - 0.98 * p["chair"], 0.70 + zero),
        "right arm": (p["chair_x"] + 0.98 * p["chair"], 0.70 + zero),
        "leaf": tip.picture(zero, -length + 0.012),
        "left leaf": left.picture(zero, -left_length + 0.012),
        "right leaf": right.picture(zero, -right_length + 0.012),
        "pot": (p["plant_x"], 0.76 + zero),
    }


def _paint_picture(p: Parameters, canvas: Canvas, colours: tuple) -> None:
    pen = canvas.pen(_picture(p))
    w, h = p["picture_w"], p["picture_h"]
    wood, sky, hill, sun = colours
    pen.draw(
        lambda px, py: box(px, py, w + 0.020, h + 0.020, 0.010),
        wood,
        ball=(0.0, 0.0, 2 * w, 2 * h),
        depth=0.6,
        shadow=0.22,
    )
    inner = pen.draw(lambda px, py: box(px, py, w, h, 0.004), sky)
    pen.draw(lambda px, py: circle(px - 0.4 * w, py + 0.35 * h, 0.022), sun, clip=inner)
    pen.draw(
        lambda px, py: triangle(
            px, py, (-1.3 * w, 1.2 * h), (0.7 * w, 1.2 * h), (-0.3 * w, -0.25 * h), 0.006
        ),
        hill,
        clip=inner,
    )
    pen.draw(
        lambda px, py: triangle(
            px, py, (-0.3 * w, 1.2 * h), (1.5 * w, 1.2 * h), (0.55 * w, 0.15 * h), 0.006
        ),
        mix(hill, sky, 0.35),
        clip=inner,
    )


def _paint_lamp(p: Parameters, canvas: Canvas, shade: Tensor) -> None:
    pen = canvas.pen()
    x, top, s = p["lamp_x"], 0.86 - p["lamp"], p["shade"]
    canvas.glow(x, top + 0.04, 0.40, "#fff0b8", 0.62 * p["glow"])
    pen.draw(
        lambda px, py: ellipse(px - x, py - 0.872, 0.085, 0.024), "#2a1f4a", opacity=0.35, soft=0.03
    )
    pen.draw(
        lambda px, py: capsule(px, py, (x, top), (x, 0.855), 0.0105),
        "#6a5148",
        ball=(x, 0.6, 0.02, 1.0),
    )
    pen.draw(
        lambda px, py: ellipse(px - x, py - 0.858, 0.066, 0.019),
        "#6a5148",
        ball=(x, 0.855, 0.07, 0.025),
    )
    turned = canvas.pen(_shade(p))

    def cone(px: Tensor, py: Tensor) -> Tensor:
        wide = 0.82 + 0.32 * py / s
        return box(px / wide, py, s, 0.95 * s, 0.012) * 0.75

    cover = turned.draw(cone, shade, ball=(0.0, 0.0, 1.6 * s, 2.4 * s), depth=0.5, shadow=0.16)
    turned.draw(
        lambda px, py: ellipse(px, py - 0.25 * s, 0.8 * s, 0.8 * s),
        "#fff3b0",
        soft=0.09,
        opacity=0.75 * p["glow"],
        clip=cover,
    )
    for at in (-0.83, 0.83):
        turned.draw(
            lambda px, py, at=at: (py - at * s).abs() - 0.010, "#d9a05a", opacity=0.65, clip=cover
        )


def _paint_chair(p: Parameters, pen: Pen, fabric: Tensor, cushion: Tensor) -> None:
    x, w, back = p["chair_x"], p["chair"], p["back"]
    pen.draw(
        lambda px, py: ellipse(px - x, py - 0.880, 1.20 * w, 0.045),
        "#2a1f4a",
        opacity=0.38,
        soft=0.05,
    )
    for side in (-1, 1):
        pen.draw(
            lambda px, py, side=side: capsule(
                px, py, (x + side * 0.78 * w, 0.84), (x + side * 0.84 * w, 0.883), 0.016, 0.011
            ),
            "#6a4a38",
        )
    pen.draw(
        lambda px, py: box(px - x, py - 0.78 + back / 2, 0.86 * w, back / 2 + 0.065, 0.06),
        fabric,
        ball=(x, 0.72 - 0.5 * back, w, 0.25),
        rim=0.025,
        shadow=0.14,
    )
    pen.draw(
        lambda px, py: box(px - x, py - 0.815, 0.92 * w, 0.042, 0.025),
        fabric,
        ball=(x, 0.81, w, 0.06),
        rim=0.02,
    )
    pen.draw(
        lambda px, py: box(px - x, py - 0.772, 0.76 * w, 0.034, 0.026),
        mix(fabric, cushion, 0.12),
        ball=(x, 0.765, w, 0.05),
        rim=0.018,
        shadow=0.14,
    )
    c = p["cushion"]
    pen.draw(
        lambda px, py: box(px - x, py - 0.742 + c, c, c, 0.022),
        cushion,
        ball=(x, 0.74 - c, 1.2 * c, 1.2 * c),
        rim=0.02,
        shadow=0.20,
    )
    for side in (-1, 1):
        pen.draw(
            lambda px, py, side=side: box(
                px - x - side * 0.98 * w, py - 0.765, 0.042, 0.092, 0.040
            ),
            fabric,
            ball=(x + side * 0.98 * w, 0.75, 0.06, 0.12),
            rim=0.022,
            shadow=0.14,
        )


def _paint_plant(p: Parameters, canvas: Canvas, clay: Tensor) -> None:
    pen = canvas.pen()
    x = p["plant_x"]
    pen.draw(
        lambda px, py: ellipse(px - x, py - 0.835, 0.080, 0.024), "#2a1f4a", opacity=0.35, soft=0.03
    )
    for number, (angle, part) in enumerate(_LEAVES):
        frame, length = _leaf(p, angle, part)
        leaf(pen, frame, length, 0.16 * length, ("#5f9a62", "#72ab66")[number % 2])

    def pot(px: Tensor, py: Tensor) -> Tensor:
        taper = 1 - 0.26 * ((py - 0.71) / 0.12).clamp(0, 1)
        return box((px - x) / taper, py - 0.77, 0.066, 0.064, 0.014)

    pen.draw(pot, clay, ball=(x, 0.77, 0.075, 0.08), shadow=0.10)
    pen.draw(
        lambda px, py: box(px - x, py - 0.714, 0.075, 0.018, 0.010),
        clay,
        ball=(x, 0.71, 0.08, 0.05),
        shadow=0.18,
    )


def _paint(p: Parameters, canvas: Canvas) -> None:
    top, bottom, floor, rug, chair, cushion, shade, pot = pick(p["room"], _ROOM)
    canvas.backdrop(top, bottom, 0.8)
    pen = canvas.pen()
    ground = pen.draw(lambda px, py: _FLOOR - py, floor, ball=(0.5, 0.85, 1.2, 0.3), depth=0.5)
    for k, y in enumerate((0.785, 0.875, 0.955)):
        pen.draw(
            lambda px, py, k=k, y=y: (py - y - 0.003 * (px * 6 + k).sin()).abs() - 0.008,
            "#4a2a20",
            opacity=0.10,
            clip=ground,
        )
    pen.draw(lambda px, py: (py - _FLOOR + 0.008).abs() - 0.016, "#fffaf0", opacity=0.85)
    r = p["rug"]
    pen.draw(lambda px, py: ellipse(px - 0.5, py - 0.885, r + 0.06, 0.082), rug, rim=0.02)
    pen.draw(
        lambda px, py: ellipse(px - 0.5, py - 0.885, r, 0.062).abs() - 0.008, chair, opacity=0.35
    )
    wood = rgb("#fffaf0", pen.x.device)
    _paint_picture(p, canvas, (wood, mix(top, cushion, 0.30), mix(chair, top, 0.25), shade))
    _paint_plant(p, canvas, pot)
    _paint_chair(p, pen, chair, cushion)
    _paint_lamp(p, canvas, shade)


def _move_picture(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {
        "picture_x": p["picture_x"] + draw.between(0.07, 0.16),
        "picture_y": p["picture_y"] + draw.between(-0.02, 0.06),
    }


def _move_chair(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    # Starting well to the right, the armchair does not slide behind the lamp.
    start = draw.between(0.57, 0.60)
    return {"chair_x": start}, {"chair_x": start - draw.between(0.06, 0.10)}


def _turn_shade(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {"shade_tilt": p["shade_tilt"] + draw.swing(0.52, 0.75)}


def _turn_picture(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {"picture_tilt": p["picture_tilt"] + draw.swing(0.32, 0.55)}


def _lamp(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    low, high = draw.between(0.42, 0.46), draw.between(0.57, 0.63)
    up = draw.unit() < 0.6
    return {"lamp": low.where(up, high)}, {"lamp": high.where(up, low)}


def _back(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    low, high = draw.between(0.21, 0.24), draw.between(0.32, 0.38)
    up = draw.unit() < 0.6
    return {"back": low.where(up, high), "picture_y": 0.17 + 0.0 * low}, {
        "back": high.where(up, low)
    }


def _wilt(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"plant": draw.between(0.20, 0.23)}, {"plant": 0.0 * p["plant"] + 0.01}


def _grow(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"plant": draw.between(0.09, 0.11)}, {"plant": draw.between(0.25, 0.31)}


_CORNERS = ("picture left", "picture right", "picture low left", "picture low right")
_CHAIR = ("chair back left", "chair back right", "left arm", "right arm", "seat")

FAMILY = Family(
    name="room",
    caption="an illustration of a living room with a lamp and an armchair",
    parameters=_parameters,
    points=_points,
    paint=_paint,
    edits=(
        Edit("relocation", _move_picture, _CORNERS, ("pole", "seat")),
        Edit("relocation", _move_chair, _CHAIR, ("base", "pot")),
        Edit("rotation", _turn_shade, ("shade left", "shade right", "shade top"), ("base", "pole")),
        Edit("rotation", _turn_picture, _CORNERS, ("seat",)),
        Edit("rescaling", _lamp, ("shade left", "shade right", "shade top"), ("base", "pole")),
        Edit("rescaling", _back, ("chair back left", "chair back right"), ("seat", "left arm")),
        Edit("removal", _wilt, ("leaf", "left leaf", "right leaf"), ("pot", "seat")),
        Edit("creation", _grow, ("leaf", "left leaf", "right leaf"), ("pot", "seat")),
    ),
)
