"""Paired differences of two tables of run.py, with bootstrap intervals: python compare.py A B."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import torch

COLUMNS = ("handle_error", "truth_error_inside", "truth_error_outside", "operations")
RESAMPLES = 10_000


def read(path: str) -> dict[str, dict[str, str]]:
    """Rows by sample."""
    with Path(path).open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def main() -> None:
    one, other = (read(path) for path in sys.argv[1:3])
    if one.keys() != other.keys():
        raise SystemExit(f"the tables hold {len(one)} and {len(other)} samples, not the same ones")
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(one), (RESAMPLES, len(one)), generator=generator)
    print(f"{len(one)} edits, {sys.argv[2]} - {sys.argv[1]}\n")
    print("| | mean before | paired difference | 95 % interval | of the mean |")
    print("|---|---|---|---|---|")
    for column in COLUMNS:
        before, after = (
            torch.tensor([float(table[name][column]) for name in one]).double()
            for table in (one, other)
        )
        difference = after - before
        low, high = difference[drawn].mean(dim=1).quantile(torch.tensor([0.025, 0.975]).double())
        mean = before.mean()
        print(
            f"| {column} | {mean:.4f} | {difference.mean():+.4f} | {low:+.4f} to {high:+.4f} | "
            f"{100 * low / mean:+.1f} % to {100 * high / mean:+.1f} % |"
        )


if __name__ == "__main__":
    main()
