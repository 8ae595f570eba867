"""A sailboat on the sea."""

from __future__ import annotations

from torch import Tensor

from gooddrag.world.families.parts import cloud
from gooddrag.world.family import Draw, Edit, Family, Parameters, Point
from gooddrag.world.paint import Canvas, Pen, mix, pick, rgb
from gooddrag.world.sdf import Frame, box, capsule, circle, ellipse, intersection, triangle

_AIR = (  # sky top, sky bottom, far sea, near sea, sun, island
    ("#86c5ea", "#eaf6f2", "#5fb0cf", "#2f7fae", "#ffd75e", "#8ab77d"),
    ("#f6a987", "#ffeccf", "#d59aa4", "#7a6a9c", "#ff9a62", "#9a7f9c"),
    ("#9fdcd4", "#f5f6e0", "#63bdb8", "#2f8b93", "#ffcf4d", "#a2c078"),
    ("#b3b1e4", "#fde4df", "#9aa5d6", "#5b6aa8", "#ffe39a", "#8f9cc0"),
    ("#7fb2e0", "#fdf1d6", "#6aa7d0", "#39699f", "#ffdf6b", "#97b489"),
)
_BOAT = (  # hull, stripe, main sail, fore sail, flag
    ("#c8553d", "#fdf3e0", "#fffaf0", "#f4c95d", "#3f7fb5"),
    ("#3e5c86", "#f4e3c2", "#fff7ea", "#e86a5c", "#f0b23f"),
    ("#8a5a3c", "#f6d9a8", "#f9efdc", "#f2e2c4", "#d6524a"),
    ("#f4f0e6", "#d6524a", "#f7b0a2", "#fff5e8", "#3f7fb5"),
    ("#2f7f78", "#fbeecb", "#fff9ec", "#f2a65a", "#e4574f"),
)


def _parameters(draw: Draw) -> Parameters:
    light = draw.swing(0.45, 1.0)
    return {
        "light": light,
        "air": draw.unit(),
        "boat": draw.unit(),
        "sun_x": 0.5 + 0.32 * light + draw.between(-0.05, 0.05),
        "sun_y": draw.between(0.14, 0.24),
        "sun": draw.between(0.055, 0.08),
        "cloud_x": 0.5 - 0.33 * light.sign() + draw.between(-0.03, 0.03),
        "cloud_y": draw.between(0.13, 0.24),
        "cloud": draw.between(0.09, 0.13),
        "x": draw.between(0.42, 0.58),
        "y": draw.between(0.71, 0.75),
        "roll": draw.between(-0.08, 0.08),
        "size": draw.between(0.17, 0.20),
        "mast": draw.between(0.34, 0.42),
        "fore": draw.between(0.7, 0.95),
        "main": draw.between(0.80, 1.0),
        "island_x": 0.5 + draw.swing(0.30, 0.40),
        "island": draw.between(0.06, 0.11),
        "wave": draw.unit(),
        "stripe": draw.chance(0.6),
    }


def _boat(p: Parameters) -> Frame:
    return Frame(p["x"], p["y"], p["roll"])


def _points(p: Parameters) -> dict[str, Point]:
    boat, s, mast = _boat(p), p["size"], p["mast"]
    low = 0.30 * s
    return {
        "sun": (p["sun_x"], p["sun_y"]),
        "mast top": boat.picture(0.0 * s, -mast - low),
        "bow": boat.picture(0.92 * s, -0.20 * s),
        "stern": boat.picture(-0.86 * s, -0.20 * s),
        "main clew": boat.picture(-0.72 * s, -low - 0.045),
        "main middle": boat.picture(-0.28 * s, -low - 0.10),
        "main peak": boat.picture(-0.032 + 0 * s, -low - 0.03 - 0.9 * mast * p["main"]),
        "fore peak": boat.picture(0.034 + 0 * s, -low - 0.03 - 0.88 * mast * p["fore"]),
        "island": (p["island_x"], 0.52 - p["island"] + 0.012),
        "hull": boat.picture(0.0 * s, 0.002 + 0.0 * s),
        "cloud left": (p["cloud_x"] - 0.86 * p["cloud"], p["cloud_y"] + 0.05 * p["cloud"]),
        "cloud right": (p["cloud_x"] + 0.88 * p["cloud"], p["cloud_y"] + 0.05 * p["cloud"]),
    }


def _wave(pen: Pen, level: float, height: float, pitch: float, phase: Tensor, colour: Tensor):
    """Paints the sea below a wavy line at `level`."""
    pen.draw(
        lambda px, py: (level + height * (px * pitch + phase * 6.283).sin() - py) * 0.9,
        colour,
        ball=(0.5, level + 0.1, 1.0, 0.16),
        depth=0.45,
        shadow=0.06,
    )


def _paint_sails(p: Parameters, pen: Pen, main: Tensor, fore: Tensor, flag: Tensor) -> None:
    s, mast = p["size"], p["mast"]
    low = -0.30 * s
    pen.draw(
        lambda px, py: triangle(
            px,
            py,
            (0.0, low - mast + 0.012),
            (0.0, low - mast + 0.058),
            (-0.085, low - mast + 0.035),
            0.006,
        ),
        flag,
        ball=(-0.04, low - mast, 0.08, 0.1),
    )
    pen.draw(
        lambda px, py: capsule(px, py, (0.0, 0.0), (0.0, low - mast), 0.011, 0.009),
        "#7a5038",
        ball=(0.0, 0.0, 0.03, 1.0),
    )
    base = low - 0.03
    sail = pen.draw(
        lambda px, py: triangle(
            px,
            py,
            (-0.026, base),
            (-0.80 * s, base),
            (-0.026, base - 0.93 * mast * p["main"]),
            0.010,
        ),
        main,
        ball=(-0.30 * s, base - 0.3 * mast, 0.9 * s, mast),
        depth=0.7,
        shadow=0.12,
    )
    for k in (0.28, 0.56):
        pen.draw(
            lambda px, py, k=k: box(px, py - base + k * mast * p["main"], s, 0.022, 0.004),
            fore,
            opacity=0.55 * p["stripe"],
            clip=sail,
        )
    pen.draw(
        lambda px, py: triangle(
            px,
            py,
            (0.030, base),
            (0.78 * s, base + 0.01),
            (0.030, base - 0.90 * mast * p["fore"]),
            0.010,
        ),
        fore,
        ball=(0.30 * s, base - 0.3 * mast, 0.9 * s, mast),
        depth=0.7,
        shadow=0.12,
        opacity=(p["fore"] / 0.05).clamp(0, 1),
    )


def _paint_hull(p: Parameters, pen: Pen, hull: Tensor, stripe: Tensor) -> None:
    s = p["size"]

    def shape(px: Tensor, py: Tensor) -> Tensor:
        # The deck is curved: higher at bow and stern.
        deck = -(py + 0.20 * s + 0.13 * s * (px / s) ** 2)
        return intersection(ellipse(px, py + 0.36 * s, 1.10 * s, 0.80 * s), deck)

    body = pen.draw(shape, hull, ball=(0.0, 0.0, 1.2 * s, 0.6 * s), shadow=0.14)
    pen.draw(
        lambda px, py: (py + 0.06 * s + 0.13 * s * (px / s) ** 2).abs() - 0.010, stripe, clip=body
    )
    for k in (-0.36, 0.0, 0.36):
        pen.draw(
            lambda px, py, k=k: circle(px - k * s, py - 0.12 * s + 0.06 * k * k, 0.016),
            stripe,
            rim=0.008,
            clip=body,
        )


def _paint(p: Parameters, canvas: Canvas) -> None:
    top, bottom, far, near, sun, island = pick(p["air"], _AIR)
    hull, stripe, main, fore, flag = pick(p["boat"], _BOAT)
    canvas.backdrop(top, bottom, 0.6)
    pen = canvas.pen()
    x, y, r = p["sun_x"], p["sun_y"], p["sun"]
    canvas.glow(x, y, 4.2 * r, "#fff6d8", 0.75)
    pen.draw(lambda px, py: circle(px - x, py - y, r), sun, ball=(x, y, r, r), depth=0.4)
    cloud(
        pen, p["cloud_x"], p["cloud_y"], p["cloud"], "#fffdf8", (p["cloud"] / 0.03).clamp(0, 0.95)
    )
    h = p["island"]
    pen.draw(
        lambda px, py: ellipse(px - p["island_x"], py - 0.53, 0.08 + 1.1 * h, h + 0.01),
        island,
        ball=(p["island_x"], 0.52, 0.15, 0.1),
        depth=0.7,
    )
    white = rgb("#ffffff", pen.x.device)
    _wave(pen, 0.52, 0.003, 9.0, p["wave"], mix(far, bottom, 0.35))
    _wave(pen, 0.60, 0.009, 17.0, p["wave"] + 0.4, far)
    _wave(pen, 0.68, 0.011, 15.0, p["wave"] + 0.1, mix(far, near, 0.35))
    # The sun's path of light on the water.
    pen.draw(
        lambda px, py: ellipse(px - x, py - 0.62, 0.05, 0.14),
        mix(sun, white, 0.5),
        soft=0.05,
        opacity=0.35,
    )
    boat = canvas.pen(_boat(p))
    _paint_sails(p, boat, main, fore, flag)
    _paint_hull(p, boat, hull, stripe)
    pen.draw(
        lambda px, py: ellipse(px - p["x"], py - p["y"] - 0.045, 1.25 * p["size"], 0.05),
        "#1c3358",
        opacity=0.30,
        soft=0.04,
    )
    _wave(pen, 0.775, 0.012, 14.0, p["wave"] + 0.7, mix(far, near, 0.7))
    _wave(pen, 0.875, 0.014, 12.0, p["wave"] + 0.2, near)
    for k, (at, level) in enumerate(((0.14, 0.73), (0.84, 0.72), (0.30, 0.84), (0.70, 0.935))):
        pen.draw(
            lambda px, py, at=at, level=level: capsule(
                px, py, (at - 0.035, level), (at + 0.035, level), 0.009
            ),
            white,
            opacity=0.35 + 0.05 * k,
        )


def _move_sun(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    inward = -(p["sun_x"] - 0.5).sign()
    # The boat keeps clear so that its sails never hide the sun.
    return {"x": 0.5 + 0.08 * inward}, {
        "sun_x": p["sun_x"] + inward * draw.between(-0.02, 0.02),
        "sun_y": p["sun_y"] + draw.between(0.08, 0.15),
    }


def _move_boat(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    inward = -(p["x"] - 0.5).sign()
    return {}, {"x": p["x"] + inward * draw.between(0.10, 0.20)}


def _roll(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    turn = draw.between(0.27, 0.38)
    return {}, {"roll": p["roll"] + turn * (1 - 2 * (p["roll"] > 0).float())}


def _mast(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    low, high = draw.between(0.26, 0.30), draw.between(0.39, 0.45)
    up = draw.unit() < 0.6
    return {"mast": low.where(up, high)}, {"mast": high.where(up, low)}


def _lower(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    zero = 0.0 * p["x"]
    return {"fore": 0.42 + 0.1 * draw.unit(), "mast": zero + 0.38}, {"fore": zero}


def _sink(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"island": draw.between(0.08, 0.12)}, {"island": 0.0 * p["x"] - 0.011}


def _hoist(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"fore": draw.between(0.14, 0.20)}, {"fore": draw.between(0.60, 0.72)}


def _rise(p: Parameters, draw: Draw) -> tuple[Parameters, Parameters]:
    return {"island": draw.between(0.022, 0.03)}, {"island": draw.between(0.09, 0.14)}


FAMILY = Family(
    name="sailboat",
    caption="an illustration of a sailboat on the sea",
    parameters=_parameters,
    points=_points,
    paint=_paint,
    edits=(
        Edit("relocation", _move_boat, ("mast top", "bow", "stern", "main middle"), ()),
        Edit("relocation", _move_sun, ("sun",), ("bow", "stern")),
        Edit("rotation", _roll, ("mast top", "main clew", "bow"), ("hull",)),
        Edit("rescaling", _mast, ("mast top", "main peak", "fore peak"), ("bow", "stern")),
        Edit("removal", _lower, ("fore peak",), ("bow", "mast top")),
        Edit("removal", _sink, ("island",), ("mast top",)),
        Edit("creation", _hoist, ("fore peak",), ("bow", "mast top")),
        Edit("creation", _rise, ("island",), ("mast top", "bow")),
    ),
)
