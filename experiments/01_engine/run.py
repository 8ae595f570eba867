"""Many DragWorld edits with one engine setting, in batches: a row of errors for each.

python run.py float32.csv engine=plain backbone.dtype=float32
python run.py bfloat16.csv
python compare.py float32.csv bfloat16.csv
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import torch

from gooddrag import load_method
from gooddrag.data.world import to_sample
from gooddrag.types import DragSample, Edit
from gooddrag.world import WorldEdit, render_edit


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("overrides", nargs="*", help="as for gooddrag edit")
    parser.add_argument("--count", type=int, default=200, help="edits of the test split")
    parser.add_argument("--batch", type=int, default=50, help="edits at a time")
    args = parser.parse_intermixed_args()
    method = load_method("gooddrag", ["adapt.cache=null", *args.overrides])
    rows, start = [], time.perf_counter()
    for first in range(0, args.count, args.batch):
        worlds = [
            render_edit("test", 0, i) for i in range(first, min(first + args.batch, args.count))
        ]
        samples = [to_sample(world) for world in worlds]
        edits = method(samples)
        rows += [errors(*triple) for triple in zip(worlds, samples, edits, strict=True)]
        passed = time.perf_counter() - start
        print(f"{len(rows)} edits, {60 * len(rows) / passed:.0f} a minute", flush=True)
        with args.table.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def errors(world: WorldEdit, sample: DragSample, edit: Edit) -> dict[str, object]:
    """How far the handles ended from their targets, and the picture from the truth."""
    moving = (sample.handles != sample.targets).any(dim=1)
    missing = (edit.handles.cpu() - sample.targets).norm(dim=1)[moving].mean()
    off, inside = (edit.image.cpu() - world.truth).abs().mean(dim=0), world.mask[0] > 0
    return {
        "name": world.name,
        "task": world.task,
        "operations": len(edit.trajectory.operations),
        "handle_error": f"{float(missing):.4f}",
        "truth_error_inside": f"{float(off[inside].mean()):.6f}",
        "truth_error_outside": f"{float(off[~inside].mean()) if (~inside).any() else 0:.6f}",
        "finite": bool(torch.isfinite(edit.image).all()),
    }


if __name__ == "__main__":
    main()
