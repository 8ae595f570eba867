"""A cat's face."""

from __future__ import annotations

from torch import Tensor

from gooddrag.world.families.parts import eye
from gooddrag.world.family import Draw, Edit, Family, Parameters, Point
from gooddrag.world.paint import Canvas, Pen, mix, pick, rgb
from gooddrag.world.sdf import Frame, capsule, circle, ellipse, smile, smooth_union, triangle

_FUR = (  # coat, light parts, markings
    ("#f2a65a", "#fff1dc", "#d97f38"),
    ("#9aa3b5", "#eef0f4", "#767f95"),
    ("#f6e6cf", "#fffaf2", "#dcb98e"),
    ("#6d6478", "#d9d3e0", "#544b60"),
    ("#c98d5e", "#fbe8d2", "#9c6440"),
    ("#e9c9a4", "#fff6ea", "#b98a5e"),
)
_WALL = (  # top, bottom, dots, ball, collar
    ("#bfe3e0", "#e9f5ee", "#d8f0ea", "#f0706b", "#e4574f"),
    ("#fbd6c8", "#fdeee2", "#fbe3d8", "#4fa5a0", "#2f8f8b"),
    ("#cbd5f2", "#eceffb", "#dde4f8", "#f3b13f", "#e0782f"),
    ("#fbe6ae", "#fdf5dc", "#fcedc6", "#5b8fd0", "#3f6fb5"),
    ("#d5e8bd", "#f1f7e2", "#e3f0d2", "#d4679a", "#b84a80"),
    ("#dccbe9", "#f3ebf8", "#e7dbf1", "#55a878", "#3b8c60"),
)
_IRIS = (("#7cb65a",), ("#e0a62e",), ("#58a6c8",), ("#b9be4a",))


def _parameters(draw: Draw) -> Parameters:
    return {
        "light": draw.between(-1, 1),
        "wall": draw.unit(),
        "fur": draw.unit(),
        "iris": draw.unit(),
        "x": draw.between(0.45, 0.55),
        "y": draw.between(0.73, 0.77),
        "body_x": draw.between(0.47, 0.53),
        "tilt": draw.between(-0.14, 0.14),
        "width": draw.between(0.245, 0.285),
        "height": draw.between(0.205, 0.235),
        "ear_left": draw.between(0.11, 0.15),
        "ear_right": draw.between(0.11, 0.15),
        "ear_spread": draw.between(0.66, 0.80),
        "eye": draw.between(0.050, 0.060),
        "gaze": draw.between(-0.012, 0.012),
        "mouth": draw.chance(0.4) * draw.between(0.5, 1.0),
        "stripes": draw.chance(0.6),
        "ball_x": draw.between(0.10, 0.18),
        "ball_y": draw.between(0.80, 0.88),
        "ball": draw.between(0.06, 0.08),
    }


def _head(p: Parameters) -> Frame:
    """The head's frame; it tilts about the neck at (x, y)."""
    centre = Frame(p["x"], p["y"], p["tilt"]).picture(0.0, -p["height"] - 0.02)
    return Frame(centre[0], centre[1], p["tilt"])


def _ear_tip(p: Parameters, side: int) -> tuple[Tensor, Tensor]:
    """Tip of an ear in the head's frame; side -1 is the picture's left."""
    ear = p["ear_left"] if side < 0 else p["ear_right"]
    return side * p["ear_spread"] * p["width"], -0.72 * p["height"] - ear


def _mouth(p: Parameters) -> tuple[Tensor, Tensor]:
    """Top and half height of the mouth in the head's frame."""
    return 0.34 * p["height"], 0.058 * p["mouth"]


def _points(p: Parameters) -> dict[str, Point]:
    head = _head(p)
    top, half = _mouth(p)
    eye_x = 0.43 * p["width"]
    left, right = _ear_tip(p, -1), _ear_tip(p, 1)
    return {
        "left ear": head.picture(left[0], left[1] + 0.012),
        "right ear": head.picture(right[0], right[1] + 0.012),
        "nose": head.picture(0.0 * top, 0.17 * p["height"]),
        "chin": head.picture(0.0 * top, 0.92 * p["height"] + 0.4 * half),
        "lip": head.picture(0.0 * top, top + 2 * half + 0.012),
        "left eye": head.picture(-eye_x, -0.08 * p["height"]),
        "right eye": head.picture(eye_x, -0.08 * p["height"]),
        "bell": (p["body_x"], 0.86 + 0 * top),
        "ball": (p["ball_x"], p["ball_y"]),
    }


def _paint_body(p: Parameters, pen: Pen, fur: list[Tensor], collar: Tensor) -> None:
    x = p["body_x"]
    body = pen.draw(
        lambda px, py: ellipse(px - x, py - 1.10, 0.30, 0.42),
        fur[0],
        ball=(x, 1.0, 0.32, 0.4),
        shadow=0.16,
    )
    pen.draw(lambda px, py: ellipse(px - x, py - 1.04, 0.14, 0.22), fur[1], clip=body, soft=0.05)
    pen.draw(
        lambda px, py: smile(px - x, py - 0.775, 0.24, 0.055, 0.022),
        collar,
        clip=body,
        shadow=0.22,
        rim=0.012,
    )


def _paint_ball(p: Parameters, pen: Pen, colour: Tensor) -> None:
    x, y, radius = p["ball_x"], p["ball_y"], p["ball"]
    ball = pen.draw(
        lambda px, py: circle(px - x, py - y, radius),
        colour,
        ball=(x, y, radius, radius),
        shadow=0.22,
    )
    for bend in (-0.5, 0.5):
        pen.draw(
            lambda px, py, bend=bend: smile(
                px - x, py - y - 0.25 * bend * radius, radius, bend * radius, 0.009
            ),
            "#fffaf0",
            opacity=0.6,
            clip=ball,
        )


def _paint_ears(p: Parameters, pen: Pen, fur: list[Tensor]) -> None:
    w, h = p["width"], p["height"]
    for side in (-1, 1):
        tip = _ear_tip(p, side)
        a, b = (side * 0.90 * w, -0.10 * h), (side * 0.16 * w, -0.72 * h)
        pen.draw(
            lambda px, py, a=a, b=b, tip=tip: triangle(
                px, py, a, b, (tip[0], tip[1] + 0.022), 0.022
            ),
            fur[0],
            ball=(tip[0], tip[1] + 0.1, 0.16, 0.16),
            shadow=0.16,
        )
        inner_a = (side * 0.80 * w, -0.35 * h)
        inner_b = (side * 0.36 * w, -0.72 * h)
        inner_tip = (tip[0] * 0.98, tip[1] + 0.062)
        pen.draw(
            lambda px, py, a=inner_a, b=inner_b, tip=inner_tip: triangle(px, py, a, b, tip, 0.012),
            mix(fur[0], rgb("#f59a9a", pen.x.device), 0.62),
        )


def _paint_head(p: Parameters, pen: Pen, fur: list[Tensor], iris: Tensor) -> None:
    w, h = p["width"], p["height"]
    top, half = _mouth(p)
    _paint_ears(p, pen, fur)

    def skull(px: Tensor, py: Tensor) -> Tensor:
        face = ellipse(px, py, w, h)
        return smooth_union(face, ellipse(px, py - 0.35 * h, w * 1.02, h * 0.62 + 0.4 * half), 0.05)

    head = pen.draw(skull, fur[0], ball=(0.0, 0.0, w, h), rim=0.03)
    for k in (-1, 0, 1):
        pen.draw(
            lambda px, py, k=k: capsule(
                px,
                py,
                (k * 0.20 * w, -1.02 * h),
                (k * 0.15 * w, -(0.52 - 0.08 * abs(k)) * h),
                0.020,
                0.011,
            ),
            fur[2],
            opacity=0.8 * p["stripes"],
            clip=head,
        )
    for side in (-1, 1):
        pen.draw(
            lambda px, py, side=side: ellipse(
                px - side * 0.19 * w, py - 0.40 * h, 0.36 * w, 0.34 * h + 0.4 * half
            ),
            fur[1],
            clip=head,
            soft=0.045,
        )
        pen.draw(
            lambda px, py, side=side: ellipse(px - side * 0.66 * w, py - 0.32 * h, 0.055, 0.042),
            "#f58a86",
            opacity=0.45,
            clip=head,
            soft=0.035,
        )
        eye_x = side * 0.43 * w
        eye(pen, eye_x, -0.08 * h, p["eye"], p["eye"] * 1.12, iris, (p["gaze"], 0.0 * w))
    _paint_muzzle(p, pen, top, half)


def _paint_muzzle(p: Parameters, pen: Pen, top: Tensor, half: Tensor) -> None:
    w, h = p["width"], p["height"]
    mouth = pen.draw(
        lambda px, py: ellipse(px, py - top - half, 0.016 + 0.036 * p["mouth"], half + 0.004),
        "#7c2f3c",
    )
    pen.draw(
        lambda px, py: ellipse(px, py - top - 1.75 * half, 0.040, 0.030),
        "#f2838a",
        clip=mouth,
    )
    for side in (-1, 1):
        pen.draw(
            lambda px, py, side=side: smile(
                px - side * 0.044, py - top + 0.004, 0.044, 0.022, 0.0085
            ),
            "#5a3a3f",
        )
        for lift in (0.0, 0.05):
            pen.draw(
                lambda px, py, side=side, lift=lift: capsule(
                    px,
                    py,
                    (side * 0.62 * w, 0.26 * h + lift),
                    (side * 1.16 * w, 0.20 * h + 1.6 * lift),
                    0.0080,
                    0.0065,
                ),
                "#fffaf2",
                opacity=0.9,
            )
    pen.draw(
        lambda px, py: triangle(
            px, py, (-0.022, 0.14 * h), (0.022, 0.14 * h), (0.0, 0.14 * h + 0.020), 0.012
        ),
        "#e8757b",
        ball=(0.0, 0.17 * h, 0.04, 0.03),
    )


def _paint(p: Parameters, canvas: Canvas) -> None:
    top, bottom, dots, ball, collar = pick(p["wall"], _WALL)
    fur = pick(p["fur"], _FUR)
    canvas.backdrop(top, bottom)
    pen = canvas.pen()
    pen.draw(lambda px, py: circle(px - 0.5, py - 0.52, 0.46), dots)
    canvas.glow(0.5 + 0.5 * p["light"], 0.05, 0.75, "#fffbe8", 0.5)
    _paint_body(p, pen, fur, collar)
    x = p["body_x"]
    head = _head(p)
    _paint_head(p, canvas.pen(head), fur, pick(p["iris"], _IRIS)[0])
    pen.draw(
        lambda px, py: circle(px - x, py - 0.86, 0.034),
        "#f7c948",
        ball=(x, 0.86, 0.034, 0.034),
        shadow=0.25,
    )
    pen.draw(lambda px, py: capsule(px, py, (x, 0.868), (x, 0.884), 0.008), "#8a5a1c")
    _paint_ball(p, pen, ball)


def _move_ball(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {
        "ball_x": p["ball_x"] + draw.between(0.02, 0.06),
        "ball_y": p["ball_y"] - draw.between(0.08, 0.20),
    }


def _move_head(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {}, {"x": p["x"] + draw.swing(0.05, 0.10), "y": p["y"] + draw.between(-0.01, 0.03)}


def _tilt(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    turn = draw.between(0.22, 0.36)
    return {}, {"tilt": p["tilt"] - turn * (p["tilt"] > 0).float() + turn * (p["tilt"] <= 0)}


def _ears(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    small = draw.between(0.07, 0.10)
    large = draw.between(0.15, 0.18)
    grow = draw.unit() < 0.6
    first, second = small.where(grow, large), large.where(grow, small)
    return (
        {"ear_left": first, "ear_right": first},
        {"ear_left": second, "ear_right": second},
    )


def _one_ear(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"ear_left": draw.between(0.06, 0.09)}, {"ear_left": draw.between(0.15, 0.18)}


def _close(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"mouth": draw.between(0.7, 1.0)}, {"mouth": 0.0 * p["x"]}


def _open(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"mouth": 0.0 * p["x"]}, {"mouth": draw.between(0.7, 1.0)}


FAMILY = Family(
    name="cat",
    caption="an illustration of a cat face",
    parameters=_parameters,
    points=_points,
    paint=_paint,
    edits=(
        Edit("relocation", _move_ball, ("ball",), ("bell", "nose")),
        Edit("relocation", _move_head, ("nose", "left ear", "right ear", "chin"), ("bell",)),
        Edit("rotation", _tilt, ("left ear", "right ear", "left eye", "right eye"), ("bell",)),
        Edit("rescaling", _ears, ("left ear", "right ear"), ("nose", "left eye", "right eye")),
        Edit("rescaling", _one_ear, ("left ear",), ("right ear", "left eye")),
        Edit("removal", _close, ("lip",), ("nose", "left eye", "right eye")),
        Edit("creation", _open, ("lip",), ("nose", "left eye", "right eye")),
    ),
)
