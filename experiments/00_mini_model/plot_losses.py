"""Draws the loss curves: python plot_losses.py OUTPUT [PICTURE.png].

Reads OUTPUT/vae/loss.csv and OUTPUT/unet/loss.csv. Needs Pillow only, like the package itself.
"""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

from PIL import Image, ImageDraw

PANEL, MARGIN = (640, 300), 60
CURVES = (("vae", "psnr", False), ("vae", "loss", True), ("unet", "mse", True))


def read_curve(table: Path, column: str) -> list[tuple[float, float]]:
    with table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row[column]]
    return [(float(row["step"]), float(row[column])) for row in rows]


def smooth(values: list[float], width: int) -> list[float]:
    halves = range(len(values))
    windows = [values[max(0, i - width) : i + width + 1] for i in halves]
    return [sum(window) / len(window) for window in windows]


def draw_curve(
    draw: ImageDraw.ImageDraw,
    top: int,
    title: str,
    curve: list[tuple[float, float]],
    logarithm: bool,
) -> None:
    steps = [step for step, _ in curve]
    heights = smooth([math.log10(y) if logarithm else y for _, y in curve], len(curve) // 100)
    # The first steps are far off the rest: the axis shows from the second hundredth on.
    shown = heights[len(heights) // 50 :]
    low, high = min(shown), max(shown)
    (width, height), span = PANEL, (max(shown) - min(shown)) or 1.0
    left, right, bottom = MARGIN, MARGIN + width, top + height

    def place(step: float, y: float) -> tuple[float, float]:
        clipped = min(max(y, low), high)
        return left + step / steps[-1] * width, bottom - (clipped - low) / span * height

    draw.rectangle((left, top, right, bottom), outline="grey")
    draw.line([place(*point) for point in zip(steps, heights, strict=True)], fill="navy", width=2)
    draw.text((left, top - 16), f"{title}, last {curve[-1][1]:.4g}", fill="black")
    draw.text((right - 60, bottom + 4), f"step {steps[-1]:.0f}", fill="black")
    for y in (low, high):
        label = 10**y if logarithm else y
        draw.text((4, place(0, y)[1] - 6), f"{label:.3g}", fill="black")


def main(output: Path, picture: Path) -> None:
    found = [curve for curve in CURVES if (output / curve[0] / "loss.csv").exists()]
    panel = PANEL[1] + MARGIN
    sheet = Image.new("RGB", (PANEL[0] + 2 * MARGIN, panel * len(found) + MARGIN // 2), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (stage, column, logarithm) in enumerate(found):
        curve = read_curve(output / stage / "loss.csv", column)
        title = f"{stage}: {column}" + (" (logarithmic)" if logarithm else "")
        draw_curve(draw, number * panel + MARGIN // 2, title, curve, logarithm)
    sheet.save(picture)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    main(folder, Path(sys.argv[2]) if len(sys.argv) == 3 else folder / "losses.png")
