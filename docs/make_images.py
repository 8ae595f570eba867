"""Make the pictures of the README: python docs/make_images.py

docs/images/edits.jpg is what `gooddrag edit demo.index=N` shows for four test pictures,
docs/images/dragworld.jpg the nine families of DragWorld. docs/images/report.jpg is the top of a
report's page in a browser, of experiments/06_methods.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from PIL import Image

from gooddrag import edit, load_method
from gooddrag.data.images import to_uint8
from gooddrag.data.world import contact_sheet, world_sample
from gooddrag.drawing import before_after
from gooddrag.world import FAMILIES, render_pictures

IMAGES = Path(__file__).parent / "images"
EDITS = (0, 6, 7, 3)


def save(picture: torch.Tensor, name: str) -> None:
    Image.fromarray(to_uint8(picture).numpy()).save(IMAGES / name, quality=90)


def main() -> None:
    pictures, _ = render_pictures("test", 0, range(5 * len(FAMILIES)), size=192)
    save(contact_sheet(list(pictures), columns=len(FAMILIES), gap=4), "dragworld.jpg")
    with tempfile.TemporaryDirectory() as cache:
        method = load_method("gooddrag", [f"adapt.cache={cache}"])
        samples = [world_sample("test", 0, index) for index in EDITS]
        drawn = [before_after(sample, edit(sample, method)) for sample in samples]
    save(contact_sheet(drawn, columns=2, gap=10), "edits.jpg")


if __name__ == "__main__":
    main()
