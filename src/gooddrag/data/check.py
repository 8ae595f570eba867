"""Whether a copy of a data set is whole and unchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from gooddrag.data.digest import sample_digest
from gooddrag.data.dragset import DragSet

CHECKSUM_DIGITS = 12


def survey(samples: DragSet) -> tuple[dict[str, Any], list[str]]:
    """Read all samples and count.

    Returns:
        What was found, under the names that `compare` knows: samples, pairs, pins (pairs of
        length zero), regions (samples with some), width and height (least and largest, pixels),
        categories (samples of each) and checksums; and what kept samples from being read.

    Raises:
        ValueError: no sample could be read.
    """
    unread: list[str] = []
    checksums: dict[str, str] = {}
    categories: Counter[str] = Counter()
    pairs = pins = regions = 0
    sizes: list[tuple[int, int]] = []
    for i, name in enumerate(samples.names):
        try:
            sample = samples[i]
        except ValueError as error:
            unread.append(str(error))
            continue
        checksums[name] = sample_digest(sample)[:CHECKSUM_DIGITS]
        categories[sample.category] += 1
        pairs += len(sample.handles)
        pins += int((sample.handles == sample.targets).all(dim=1).sum())
        regions += sample.regions is not None
        sizes.append(sample.size)
    if not sizes:
        raise ValueError(f"none of {len(samples)} samples can be read; the first: {unread[0]}")
    height, width = ([min(side), max(side)] for side in zip(*sizes, strict=True))
    found = {
        "samples": len(samples),
        "pairs": pairs,
        "pins": pins,
        "regions": regions,
        "width": width,
        "height": height,
        "categories": dict(sorted(categories.items())),
        "checksums": checksums,
    }
    return found, unread


def compare(found: Mapping[str, Any], known: Mapping[str, Any], whole: bool) -> list[str]:
    """What differs from what is known, a line for each kind.

    Args:
        found: by `survey`.
        known: any of the same names; checksums need not be of all samples.
        whole: whether all samples were looked at; of a part, only checksums can be compared.
    """
    lines = [
        f"{key}: found {found[key]}, known are {value}"
        for key, value in known.items()
        if whole and key != "checksums" and found[key] != value
    ]
    checksums = known.get("checksums", {})
    missing = [name for name in checksums if whole and name not in found["checksums"]]
    other = [n for n, digits in found["checksums"].items() if checksums.get(n, digits) != digits]
    if missing:
        lines.append(f"not there: {', '.join(missing)}")
    if other:
        lines.append(f"another picture, mask, prompt or points than known: {', '.join(other)}")
    return lines
