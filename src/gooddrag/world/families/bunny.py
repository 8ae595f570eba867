"""A rabbit with a balloon on a meadow."""

from __future__ import annotations

from torch import Tensor

from gooddrag.world.families.parts import cloud, eye
from gooddrag.world.family import Draw, Edit, Family, Parameters, Point
from gooddrag.world.paint import Canvas, Pen, mix, pick, rgb
from gooddrag.world.sdf import Frame, capsule, circle, ellipse, smile, smooth_union, triangle

_FUR = (  # coat, belly, inner ear
    ("#f7ecdf", "#fffaf3", "#f4b3ae"),
    ("#c9a27c", "#f7e6d0", "#efb09a"),
    ("#b3b4c4", "#f1f0f5", "#eeb4ba"),
    ("#e3b98c", "#fff1dd", "#f2a692"),
    ("#8f7a6e", "#e4d5c6", "#d99a92"),
)
_AIR = (  # sky top, sky bottom, far hill, meadow, balloon, scarf
    ("#a3d5ee", "#eef7ee", "#b4d79a", "#8cc276", "#ec6a5f", "#f2b23f"),
    ("#fbcdb4", "#fef1de", "#d8c78a", "#b3b56a", "#5b93c9", "#d85f57"),
    ("#c6c3ee", "#f8ecf4", "#a9cdb0", "#7fb393", "#f2a541", "#5f86c2"),
    ("#b5e2dc", "#f6f8e4", "#bcdc92", "#93c36a", "#c76aa0", "#3f9088"),
    ("#fbe3a6", "#fdf6dd", "#c6d68a", "#9dbf68", "#4fa59a", "#c9597a"),
)


def _parameters(draw: Draw) -> Parameters:
    return {
        "light": draw.between(-1, 1),
        "air": draw.unit(),
        "fur": draw.unit(),
        "x": draw.between(0.46, 0.54),
        "head_tilt": draw.between(-0.12, 0.12),
        "width": draw.between(0.135, 0.155),
        "left_ear": draw.between(0.17, 0.22),
        "right_ear": draw.between(0.17, 0.22),
        "left_turn": draw.between(-0.30, -0.16),
        "right_turn": draw.between(0.16, 0.30),
        "arm": draw.between(0.15, 0.55),
        "wave": draw.between(0.4, 1.3),
        "belly": draw.between(0.145, 0.165),
        "balloon_x": draw.between(0.16, 0.23),
        "balloon_y": draw.between(0.26, 0.36),
        "balloon": draw.between(0.075, 0.095),
        "mouth": draw.chance(0.5) * draw.between(0.5, 1.0),
        "cloud_x": draw.between(0.72, 0.86),
        "cloud_y": draw.between(0.12, 0.18),
        "cloud": draw.between(0.10, 0.13),
        "hill": draw.unit(),
        "scarf": draw.chance(0.7),
        "eye": draw.between(0.024, 0.030),
    }


def _head(p: Parameters) -> Frame:
    centre = Frame(p["x"], 0.60 + 0.0 * p["x"], p["head_tilt"]).picture(0.0, -0.85 * p["width"])
    return Frame(centre[0], centre[1], p["head_tilt"])


def _ear(p: Parameters, side: int) -> tuple[Frame, Tensor]:
    """Frame of an ear at its root (it grows along -y) and the ear's length."""
    name = "left" if side < 0 else "right"
    root = _head(p).picture(side * 0.45 * p["width"], -0.55 * p["width"])
    return Frame(root[0], root[1], p["head_tilt"] + p[name + "_turn"]), p[name + "_ear"]


def _hand(p: Parameters, side: int) -> tuple[Tensor, Tensor]:
    """Picture position of a hand: the left one holds the string, the right one waves."""
    turn = p["wave"] if side > 0 else p["arm"]
    shoulder = Frame(p["x"] + side * 0.72 * p["belly"], 0.67 + 0.0 * p["x"], -side * turn)
    return shoulder.picture(side * 0.04 + 0.0 * turn, 0.125 + 0.0 * turn)


def _points(p: Parameters) -> dict[str, Point]:
    head = _head(p)
    zero = 0.0 * p["x"]
    points = {
        "balloon": (p["balloon_x"], p["balloon_y"]),
        "balloon top": (p["balloon_x"], p["balloon_y"] - 0.8 * p["balloon"]),
        "balloon knot": (p["balloon_x"], p["balloon_y"] + 1.18 * p["balloon"]),
        "nose": head.picture(zero, 0.20 * p["width"]),
        "left eye": head.picture(-0.46 * p["width"], -0.06 * p["width"]),
        "right eye": head.picture(0.46 * p["width"], -0.06 * p["width"]),
        "lip": head.picture(zero, 0.42 * p["width"] + 0.088 * p["mouth"] + 0.012),
        "left hand": _hand(p, -1),
        "right hand": _hand(p, 1),
        "belly": (p["x"], 0.78 + zero),
        "left foot": (p["x"] - 0.10, 0.91 + zero),
        "right foot": (p["x"] + 0.10, 0.91 + zero),
    }
    for name, side in (("left", -1), ("right", 1)):
        frame, size = _ear(p, side)
        points[name + " ear"] = frame.picture(zero, -size + 0.012)
        points[name + " ear middle"] = frame.picture(zero, -0.6 * size)
    return points


def _paint_balloon(p: Parameters, canvas: Canvas, colour: Tensor) -> None:
    pen = canvas.pen()
    x, y, r = p["balloon_x"], p["balloon_y"], p["balloon"]
    hand = _hand(p, -1)
    pen.draw(lambda px, py: capsule(px, py, (x, y + 1.2 * r), hand, 0.0078), "#fffaf0", opacity=0.9)
    pen.draw(
        lambda px, py: triangle(
            px,
            py,
            (x - 0.14 * r, y + 1.24 * r),
            (x + 0.14 * r, y + 1.24 * r),
            (x, y + 1.05 * r),
            0.008,
        ),
        colour,
    )
    body = pen.draw(
        lambda px, py: smooth_union(
            ellipse(px - x, py - y, r, 1.06 * r), circle(px - x, py - y - 0.55 * r, 0.55 * r), 0.05
        ),
        colour,
        ball=(x, y, r, 1.1 * r),
        rim=0.02,
        shadow=0.12,
    )
    pen.draw(
        lambda px, py: ellipse(
            px - x - 0.40 * r * p["light"], py - y + 0.45 * r, 0.22 * r, 0.26 * r
        ),
        "#ffffff",
        opacity=0.5,
        soft=0.02,
        clip=body,
    )


def _paint_body(p: Parameters, pen: Pen, fur: list[Tensor], scarf: Tensor) -> None:
    x, w = p["x"], p["belly"]
    pen.draw(
        lambda px, py: ellipse(px - x + 0.03 * p["light"], py - 0.925, 0.24, 0.045),
        "#1f3a2a",
        opacity=0.32,
        soft=0.05,
    )
    pen.draw(
        lambda px, py: circle(px - x - 0.98 * w, py - 0.85, 0.045),
        fur[1],
        ball=(x + w, 0.85, 0.05, 0.05),
        rim=0.015,
    )
    pen.draw(
        lambda px, py: smooth_union(
            ellipse(px - x, py - 0.79, w, 0.135), ellipse(px - x, py - 0.67, 0.72 * w, 0.12), 0.06
        ),
        fur[0],
        ball=(x, 0.76, w, 0.2),
        rim=0.025,
        shadow=0.10,
    )
    pen.draw(lambda px, py: ellipse(px - x, py - 0.785, 0.62 * w, 0.105), fur[1], soft=0.035)
    for side in (-1, 1):
        pen.draw(
            lambda px, py, side=side: ellipse(px - x - side * 0.10, py - 0.915, 0.075, 0.038),
            fur[0],
            ball=(x + side * 0.1, 0.91, 0.08, 0.045),
            rim=0.015,
            shadow=0.14,
        )
        hand = _hand(p, side)
        pen.draw(
            lambda px, py, side=side, hand=hand: capsule(
                px, py, (x + side * 0.66 * w, 0.675), hand, 0.038, 0.034
            ),
            fur[0],
            ball=(hand[0], hand[1] - 0.03, 0.09, 0.1),
            rim=0.015,
            shadow=0.14,
        )
    pen.draw(
        lambda px, py: smile(px - x, py - 0.605, 0.10, 0.030, 0.024),
        scarf,
        ball=(x, 0.61, 0.14, 0.06),
        opacity=p["scarf"],
        shadow=0.16 * p["scarf"],
    )
    pen.draw(
        lambda px, py: capsule(px, py, (x + 0.055, 0.63), (x + 0.075, 0.73), 0.022, 0.027),
        scarf,
        ball=(x + 0.07, 0.68, 0.05, 0.1),
        opacity=p["scarf"],
        shadow=0.16 * p["scarf"],
    )


def _paint_head(p: Parameters, canvas: Canvas, fur: list[Tensor]) -> None:
    w = p["width"]
    for side in (-1, 1):
        frame, size = _ear(p, side)
        ear = canvas.pen(frame)
        ear.draw(
            lambda px, py, size=size: ellipse(px, py + 0.45 * size, 0.050, 0.55 * size),
            fur[0],
            ball=(0.0, -0.5 * size, 0.06, 0.6 * size),
            rim=0.02,
            shadow=0.12,
        )
        ear.draw(
            lambda px, py, size=size: ellipse(px, py + 0.45 * size, 0.026, 0.42 * size),
            fur[2],
            soft=0.014,
        )
    pen = canvas.pen(_head(p))
    head = pen.draw(
        lambda px, py: smooth_union(
            ellipse(px, py + 0.08 * w, 0.96 * w, 0.86 * w),
            ellipse(px, py - 0.26 * w, 1.10 * w, 0.66 * w),
            0.05,
        ),
        fur[0],
        ball=(0.0, 0.0, 1.1 * w, w),
        rim=0.025,
        shadow=0.16,
    )
    for side in (-1, 1):
        pen.draw(
            lambda px, py, side=side: circle(px - side * 0.16 * w, py - 0.42 * w, 0.34 * w),
            fur[1],
            soft=0.035,
            clip=head,
        )
        pen.draw(
            lambda px, py, side=side: ellipse(px - side * 0.72 * w, py - 0.30 * w, 0.040, 0.030),
            "#f48f8c",
            opacity=0.55,
            soft=0.026,
            clip=head,
        )
        eye(pen, side * 0.46 * w, -0.06 * w, p["eye"], 1.25 * p["eye"], "#4a3434", white="#4a3434")
    _paint_mouth(p, pen)


def _paint_mouth(p: Parameters, pen: Pen) -> None:
    w, half = p["width"], 0.044 * p["mouth"]
    top = 0.42 * p["width"]
    shown = (p["mouth"] / 0.1).clamp(0, 1)
    mouth = (
        pen.draw(
            lambda px, py: ellipse(px, py - top - half, 0.018 + 0.022 * p["mouth"], half + 0.002),
            "#7c2f3c",
            opacity=shown,
        )
        * shown
    )
    pen.draw(lambda px, py: ellipse(px, py - top - 1.8 * half, 0.030, 0.020), "#f2838a", clip=mouth)
    for side in (-1, 1):
        pen.draw(
            lambda px, py, side=side: smile(
                px - side * 0.030, py - top + 0.004, 0.030, 0.016, 0.008
            ),
            "#6a4444",
        )
    pen.draw(
        lambda px, py: triangle(
            px, py, (-0.014, 0.17 * w), (0.014, 0.17 * w), (0.0, 0.17 * w + 0.012), 0.010
        ),
        "#e8757b",
    )


def _paint(p: Parameters, canvas: Canvas) -> None:
    top, bottom, far, meadow, balloon, scarf = pick(p["air"], _AIR)
    fur = pick(p["fur"], _FUR)
    canvas.backdrop(top, bottom, 0.8)
    pen = canvas.pen()
    canvas.glow(0.5 + 0.5 * p["light"], 0.0, 0.8, "#fffbe0", 0.6)
    cloud(
        pen, p["cloud_x"], p["cloud_y"], p["cloud"], "#fffdf8", (p["cloud"] / 0.03).clamp(0, 0.95)
    )
    phase = p["hill"] * 6.283
    pen.draw(
        lambda px, py: (0.70 + 0.045 * (px * 5 + phase).sin() - py) * 0.95,
        far,
        ball=(0.5, 0.85, 1.2, 0.3),
        depth=0.5,
    )
    pen.draw(
        lambda px, py: (0.805 - 0.025 * (px * 4 + phase).sin() - py) * 0.95,
        meadow,
        ball=(0.5, 0.97, 1.2, 0.3),
        depth=0.6,
        shadow=0.08,
    )
    white = rgb("#fff8ea", pen.x.device)
    for x, y, colour in (
        (0.12, 0.90, white),
        (0.24, 0.955, balloon),
        (0.86, 0.93, white),
        (0.77, 0.87, scarf),
        (0.93, 0.865, balloon),
    ):
        pen.draw(lambda px, py, x=x, y=y: circle(px - x, py - y, 0.017), mix(colour, white, 0.25))
        pen.draw(lambda px, py, x=x, y=y: circle(px - x, py - y, 0.0075), "#f7c948")
    _paint_balloon(p, canvas, balloon)
    _paint_body(p, pen, fur, scarf)
    _paint_head(p, canvas, fur)


def _move_balloon(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {
        "balloon_x": p["balloon_x"] + draw.between(-0.03, 0.03),
        "balloon_y": p["balloon_y"]
        + draw.between(0.07, 0.16) * (1 - 2 * (draw.unit() < 0.5).float()),
    }


def _turn_ear(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {"right_turn": p["right_turn"] + draw.between(0.5, 0.9)}


def _tilt(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    turn = draw.between(0.24, 0.36)
    return {}, {"head_tilt": p["head_tilt"] + turn * (1 - 2 * (p["head_tilt"] > 0).float())}


def _wave(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"wave": draw.between(0.5, 0.8)}, {"wave": draw.between(1.7, 2.1)}


def _ears(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    short, long = draw.between(0.12, 0.15), draw.between(0.21, 0.25)
    up = draw.unit() < 0.6
    first, second = short.where(up, long), long.where(up, short)
    return {"left_ear": first, "right_ear": first}, {"left_ear": second, "right_ear": second}


def _hide_ear(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"left_ear": draw.between(0.16, 0.19)}, {"left_ear": 0.02 + 0.0 * p["x"]}


def _grow_ear(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"left_ear": draw.between(0.065, 0.075)}, {"left_ear": draw.between(0.17, 0.22)}


def _open(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"mouth": 0.0 * p["x"]}, {"mouth": draw.between(0.6, 0.9)}


_BOTH_EARS = ("left ear", "right ear", "left ear middle", "right ear middle")

FAMILY = Family(
    name="bunny",
    caption="an illustration of a bunny with a balloon on a meadow",
    parameters=_parameters,
    points=_points,
    paint=_paint,
    edits=(
        Edit("relocation", _move_balloon, ("balloon", "balloon top", "balloon knot"), ("belly",)),
        Edit("rotation", _turn_ear, ("right ear", "right ear middle"), ("left ear", "nose")),
        Edit("rotation", _tilt, _BOTH_EARS, ("belly",)),
        Edit("rotation", _wave, ("right hand",), ("nose", "belly")),
        Edit("rescaling", _ears, _BOTH_EARS, ("left eye", "right eye")),
        Edit("removal", _hide_ear, ("left ear",), ("right ear", "nose")),
        Edit("creation", _grow_ear, ("left ear",), ("right ear", "nose")),
        Edit("creation", _open, ("lip",), ("nose", "left eye", "right eye")),
    ),
)
