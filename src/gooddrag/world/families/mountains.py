"""A mountain landscape with a sun, clouds, a house and trees."""

from __future__ import annotations

from torch import Tensor

from gooddrag.world.families.parts import cloud, fir_tree, round_tree
from gooddrag.world.family import Draw, Edit, Family, Parameters, Point
from gooddrag.world.paint import Canvas, Pen, mix, pick
from gooddrag.world.sdf import Frame, box, capsule, circle, ellipse, intersection, triangle

_AIR = (  # sky top, sky bottom, far peaks, near peak, snow, back hill, front hill, sun, cloud
    (
        "#8fc7ea",
        "#f6efd8",
        "#a9b9d9",
        "#7d8fbd",
        "#fbfaff",
        "#9cc48a",
        "#6fae6a",
        "#ffd75e",
        "#ffffff",
    ),
    (
        "#f7b690",
        "#ffeccb",
        "#c79bb5",
        "#94709f",
        "#fff1ea",
        "#b5a06c",
        "#84915a",
        "#ff8f5a",
        "#fff3e6",
    ),
    (
        "#a8dcd9",
        "#f7f4dd",
        "#9cc3c4",
        "#5f97a3",
        "#f8ffff",
        "#a7cc7f",
        "#74ad5d",
        "#ffcf4d",
        "#ffffff",
    ),
    (
        "#b9b4e6",
        "#fde3e0",
        "#a79fd6",
        "#776fb4",
        "#fdf6ff",
        "#93b8a3",
        "#629a86",
        "#ffe08a",
        "#fff7fb",
    ),
    (
        "#7fb4dd",
        "#e9f5f6",
        "#9fb2c6",
        "#6c87a3",
        "#ffffff",
        "#c3cf82",
        "#8fb35c",
        "#ffdf6b",
        "#ffffff",
    ),
)
_HOUSE = (  # wall, roof
    ("#fdf0d8", "#d9604f"),
    ("#f4dcc2", "#8f5b4a"),
    ("#fbe3a8", "#4f7ca0"),
    ("#f6f2ea", "#c9784a"),
    ("#eac7b6", "#5b6f8f"),
)
_TREE = (
    ("#4f9163", "#7a553c"),
    ("#5fa25a", "#80583a"),
    ("#3f8378", "#6e5040"),
    ("#86a84a", "#7a553c"),
)


def _parameters(draw: Draw) -> Parameters:
    light = draw.swing(0.45, 1.0)
    return {
        "light": light,
        "air": draw.unit(),
        "house_colour": draw.unit(),
        "tree_colour": draw.unit(),
        "sun_x": 0.5 + 0.30 * light + draw.between(-0.05, 0.05),
        "sun_y": draw.between(0.13, 0.20),
        "sun": draw.between(0.055, 0.080),
        "cloud_x": 0.5 - 0.34 * light.sign() + draw.between(-0.02, 0.02),
        "cloud_y": draw.between(0.12, 0.22),
        "cloud": draw.between(0.10, 0.135),
        "peak_x": draw.between(0.34, 0.50),
        "peak_y": draw.between(0.27, 0.36),
        "peak_width": draw.between(0.34, 0.42),
        "second_x": draw.between(0.74, 0.86),
        "second_y": draw.between(0.38, 0.45),
        "far": draw.between(-0.05, 0.05),
        "hill": draw.between(-1.0, 1.0),
        "house_x": draw.between(0.62, 0.74),
        "house_y": draw.between(0.775, 0.80),
        "house": draw.between(0.085, 0.105),
        "tree_x": draw.between(0.17, 0.26),
        "tree_y": draw.between(0.84, 0.90),
        "tree": draw.between(0.22, 0.29),
        "tree_lean": draw.between(-0.06, 0.06),
        "round": draw.chance(0.5),
        "bush_x": draw.between(0.86, 0.95),
        "bush": draw.between(0.13, 0.18),
    }


def _tree(p: Parameters) -> Frame:
    return Frame(p["tree_x"], p["tree_y"], p["tree_lean"])


def _points(p: Parameters) -> dict[str, Point]:
    tree, t = _tree(p), p["tree"]
    x, y, s = p["house_x"], p["house_y"], p["house"]
    return {
        "sun": (p["sun_x"], p["sun_y"]),
        "cloud": (p["cloud_x"], p["cloud_y"] - 0.2 * p["cloud"]),
        "cloud left": (p["cloud_x"] - 0.86 * p["cloud"], p["cloud_y"] + 0.05 * p["cloud"]),
        "cloud right": (p["cloud_x"] + 0.88 * p["cloud"], p["cloud_y"] + 0.05 * p["cloud"]),
        "peak": (p["peak_x"], p["peak_y"] + 0.012),
        "second": (p["second_x"], p["second_y"] + 0.012),
        "roof": (x, y - 1.52 * s),
        "left wall": (x - 0.86 * s, y - 0.1 * s),
        "right wall": (x + 0.86 * s, y - 0.1 * s),
        "door": (x + 0.0 * s, y - 0.1 * s),
        "tree top": tree.picture(0.0 * t, -0.94 * t),
        "tree middle": tree.picture(0.0 * t, -0.60 * t),
        "tree root": tree.picture(0.0 * t, -0.004 + 0.0 * t),
    }


def _paint_peaks(p: Parameters, pen: Pen, far: Tensor, near: Tensor, snow: Tensor) -> None:
    for centre, y, wide in ((0.12, 0.44, 0.26), (0.62, 0.40, 0.28), (0.97, 0.43, 0.24)):
        x = centre + p["far"]
        pen.draw(
            lambda px, py, x=x, y=y, wide=wide: triangle(
                px, py, (x - wide, 0.80), (x + wide, 0.80), (x, y), 0.012
            ),
            mix(far, snow, 0.18),
            opacity=0.85,
        )
    _paint_peak(p, pen, (p["second_x"], p["second_y"], 0.30), mix(near, far, 0.25), snow)
    peak = (p["peak_x"], p["peak_y"], p["peak_width"])
    _paint_peak(p, pen, peak, mix(near, far, 0.0), snow)


def _paint_peak(p: Parameters, pen: Pen, place: tuple, colour: Tensor, snow: Tensor) -> None:
    """Paints a two-sided mountain: the side away from the light is darker; snow caps it."""
    x, y, wide = place
    rock = pen.draw(
        lambda px, py: triangle(px, py, (x - wide, 0.85), (x + wide, 0.85), (x, y + 0.012), 0.012),
        colour,
        ball=(x, 0.7, 1.0, 0.5),
        depth=0.5,
        shadow=0.10,
    )
    height = 0.85 - y
    cap = pen.draw(
        lambda px, py: (
            intersection(
                triangle(px, py, (x - wide, 0.85), (x + wide, 0.85), (x, y + 0.012), 0.012),
                py - y - 0.30 * height + 0.035 * ((px - x) * 62).sin() * (0.6 + 2.0 * (px - x)),
            )
            * 0.6
        ),
        snow,
        clip=rock,
    )
    # The ridge wanders a little, as in a paper cut.
    side = p["light"].sign()

    def dark_side(px: Tensor, py: Tensor) -> Tensor:
        ridge = x + 0.10 * (py - y) - 0.018 * ((py - y) * 30).sin()
        return (px - ridge) * side

    pen.draw(dark_side, "#3b3564", opacity=0.20, clip=rock)
    pen.draw(dark_side, "#8fa3d8", opacity=0.10, clip=cap)


def _paint_house(p: Parameters, pen: Pen) -> None:
    wall, roof = pick(p["house_colour"], _HOUSE)
    x, y, s = p["house_x"], p["house_y"], p["house"]
    pen.draw(
        lambda px, py: ellipse(px - x + 0.03 * p["light"], py - y, 1.35 * s, 0.16 * s),
        "#2a1f4a",
        opacity=0.25,
        soft=0.018,
    )
    pen.draw(
        lambda px, py: box(px - x - 0.52 * s, py - y + 1.35 * s, 0.13 * s, 0.30 * s, 0.004),
        roof,
        ball=(x + 0.5 * s, y - 1.3 * s, 0.3 * s, s),
    )
    pen.draw(
        lambda px, py: box(px - x, py - y + 0.45 * s, 0.92 * s, 0.46 * s, 0.006),
        wall,
        ball=(x, y - 0.4 * s, 1.1 * s, 1.1 * s),
        depth=0.8,
    )
    pen.draw(
        lambda px, py: triangle(
            px,
            py,
            (x - 1.08 * s, y - 0.86 * s),
            (x + 1.08 * s, y - 0.86 * s),
            (x, y - 1.58 * s),
            0.010,
        ),
        roof,
        ball=(x, y - 1.1 * s, 1.3 * s, 0.8 * s),
        shadow=0.20,
    )
    pen.draw(
        lambda px, py: box(px - x, py - y + 0.30 * s, 0.19 * s, 0.32 * s, 0.006), roof, rim=0.008
    )
    for side in (-0.56, 0.56):
        pen.draw(
            lambda px, py, side=side: box(
                px - x - side * s, py - y + 0.46 * s, 0.17 * s, 0.17 * s, 0.005
            ),
            "#ffe9a3",
            rim=0.010,
        )


def _paint_trees(p: Parameters, pen: Pen) -> None:
    green, trunk = pick(p["tree_colour"], _TREE)
    frame, t = _tree(p), p["tree"]
    pen.draw(
        lambda px, py: ellipse(
            px - p["tree_x"] + 0.03 * p["light"], py - p["tree_y"], 0.36 * t, 0.05 * t
        ),
        "#2a1f4a",
        opacity=0.24 * (t / 0.1).clamp(0, 1),
        soft=0.016,
    )
    # Both kinds are evaluated; the other one shrinks to nothing underground.
    kind = p["round"]
    fir_tree(pen, Frame(frame.x, frame.y + 2 * kind, frame.angle), t, 0.30 * t, green, trunk)
    round_tree(pen, Frame(frame.x, frame.y + 2 - 2 * kind, frame.angle), t, 0.34 * t, green, trunk)
    b = p["bush"]
    fir_tree(
        pen, Frame(p["bush_x"], 0.86 + 0 * b, 0.0 * b), b, 0.36 * b, mix(green, trunk, 0.12), trunk
    )


def _paint(p: Parameters, canvas: Canvas) -> None:
    top, bottom, far, near, snow, back, front, sun, white = pick(p["air"], _AIR)
    canvas.backdrop(top, bottom, 0.8)
    pen = canvas.pen()
    x, y, r = p["sun_x"], p["sun_y"], p["sun"]
    canvas.glow(x, y, 4.2 * r, "#fff6d8", 0.75)
    pen.draw(lambda px, py: circle(px - x, py - y, r), sun, ball=(x, y, r, r), depth=0.4)
    cloud(pen, p["cloud_x"], p["cloud_y"], p["cloud"], white, (p["cloud"] / 0.03).clamp(0, 0.95))
    _paint_peaks(p, pen, far, near, snow)
    tilt = 0.03 * p["hill"]
    pen.draw(
        lambda px, py: (
            (0.70 - tilt * (px - 0.5) * 3 + 0.030 * (px * 7 + 3 * tilt * 30).sin() - py) * 0.95
        ),
        back,
        ball=(0.5, 0.85, 1.2, 0.3),
        depth=0.5,
        shadow=0.10,
    )
    _paint_house(p, pen)
    pen.draw(
        lambda px, py: (0.815 + tilt * (px - 0.5) * 2 - 0.022 * (px * 6 + 1.0).sin() - py) * 0.95,
        front,
        ball=(0.5, 0.98, 1.2, 0.3),
        depth=0.6,
        shadow=0.10,
    )
    for k in range(3):
        pen.draw(
            lambda px, py, k=k: capsule(
                px, py, (0.30 + 0.2 * k, 0.93 - 0.02 * k), (0.36 + 0.2 * k, 0.93 - 0.02 * k), 0.010
            ),
            mix(front, back, 0.7),
            opacity=0.8,
        )
    _paint_trees(p, pen)


def _move_sun(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    inward = -(p["sun_x"] - 0.5).sign()
    return {}, {
        "sun_x": p["sun_x"] + inward * draw.between(0.08, 0.14),
        "sun_y": p["sun_y"] + draw.between(-0.04, 0.02),
    }


def _move_house(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {"house_x": p["house_x"] - draw.between(0.09, 0.19)}


def _lean(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    turn = draw.between(0.33, 0.48)
    return {}, {"tree_lean": p["tree_lean"] + turn * (1 - 2 * (p["tree_lean"] > 0).float())}


def _raise_peak(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    high, low = draw.between(0.24, 0.30), draw.between(0.37, 0.44)
    up = draw.unit() < 0.65
    return {"peak_y": low.where(up, high)}, {"peak_y": high.where(up, low)}


def _shrink_cloud(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {"cloud": 0.0 * p["cloud"]}


def _fell(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"tree": draw.between(0.17, 0.22)}, {"tree": 0.0 * p["tree"]}


def _grow(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"tree": draw.between(0.06, 0.075)}, {"tree": draw.between(0.21, 0.29)}


FAMILY = Family(
    name="mountains",
    caption="an illustration of a mountain landscape",
    parameters=_parameters,
    points=_points,
    paint=_paint,
    edits=(
        Edit("relocation", _move_sun, ("sun",), ("peak",)),
        Edit("relocation", _move_house, ("roof", "left wall", "right wall", "door"), ("peak",)),
        Edit("rotation", _lean, ("tree top", "tree middle"), ("tree root",)),
        Edit("rescaling", _raise_peak, ("peak",), ("second",)),
        Edit("removal", _shrink_cloud, ("cloud left", "cloud right"), ("peak",)),
        Edit("removal", _fell, ("tree top", "tree middle"), ("tree root", "door")),
        Edit("creation", _grow, ("tree top",), ("tree root", "door")),
    ),
)
