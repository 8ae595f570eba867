"""The data sets, a function for each kind; conf/data calls them.

They list names and read no picture. Names are paths below the root, in sorted order, and
`select` and `limit` are those of `DragSet`, whose ValueErrors come through.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from gooddrag.data import dragbench as bench
from gooddrag.data.dragset import DragSet, Select
from gooddrag.data.folder import IMAGES, POINTS, read_sample
from gooddrag.data.session import read_session
from gooddrag.data.world import check_world, to_sample, world_edit
from gooddrag.types import DragSample
from gooddrag.world import WorldEdit, edit_name

Path_ = str | os.PathLike[str]
NUMBERED = re.compile(r"generated_\d+_(?P<last>.+)|(?P<first>.+)_\d+")


def folder(root: Path_, select: Select = None, limit: int | None = None) -> DragSet:
    """Folders of samples, as `read_sample` takes them.

    Args:
        root: holds them directly or one folder further down, or is one itself.
        select, limit: which.

    Raises:
        ValueError: no such folder, or no samples in it.
    """
    return DragSet(_folders(root, *IMAGES, *POINTS), read_sample, select=select, limit=limit)


def drag100(
    root: Path_,
    categories: Mapping[str, Sequence[str]],
    select: Select = None,
    limit: int | None = None,
) -> DragSet:
    """Drag100: <root>/<kind>_<n>/ with original.jpg, mask.png, points.json.

    Args:
        root: the folder.
        categories: the kinds (`kind_of`) that make each category.
        select, limit: which.

    Raises:
        ValueError: no such folder, or no samples in it.
    """
    of_kind = {kind: category for category, kinds in categories.items() for kind in kinds}
    category = partial(_category_of_kind, of_kind)
    entries = _folders(root, *IMAGES, *POINTS)
    return DragSet(entries, read_sample, category=category, select=select, limit=limit)


def dragbench(root: Path_, select: Select = None, limit: int | None = None) -> DragSet:
    """DragBench, -DR and -SR: <root>/<category>/<sample>/ with original_image.png, meta_data.pkl.

    -SR has <root>/<kind>_<n>/. Regions are kept where there is a meta_data_region.pkl.

    Args:
        root: the folder.
        select, limit: which.

    Raises:
        ValueError: no such folder, or no samples in it.
    """
    entries = _folders(root, bench.IMAGE, bench.POINTS)
    read = bench.read_dragbench
    return DragSet(entries, read, category=category_of, select=select, limit=limit)


def dragbench_s(root: Path_, select: Select = None, limit: int | None = None) -> DragSet:
    """DragBench-S: <root>/<kind>_<n>/ with origin_image.png, mask.png, prompt.json.

    Args:
        root: the folder.
        select, limit: which.

    Raises:
        ValueError: no such folder, or no samples in it.
    """
    entries = _folders(root, *IMAGES, *POINTS)
    return DragSet(entries, read_sample, category=category_of, select=select, limit=limit)


def session(root: Path_, select: Select = None, limit: int | None = None) -> DragSet:
    """Session files.

    Args:
        root: one of them, or a folder that holds them directly or one folder further down.
        select, limit: which.

    Raises:
        ValueError: no such file or folder, or no sessions in it.
    """
    root = _path(root)
    if root.is_file():
        return DragSet({root.stem: root}, read_session, select=select, limit=limit)
    files = _below(root, "*.json", "*/*.json")
    if not files:
        raise ValueError(f"{root} holds no sessions: expected files such as cat.json")
    entries = sorted((name.removesuffix(".json"), path) for name, path in files.items())
    return DragSet(dict(entries), read_session, select=select, limit=limit)


def world(
    split: str,
    seed: int,
    start: int,
    count: int,
    size: int,
    select: Select = None,
    limit: int | None = None,
) -> DragSet:
    """DragWorld, the set with true results, in the order of its indices.

    Args:
        split: "train", "validation" or "test".
        seed: of the data set.
        start: index of the first.
        count: how many.
        size: pixels a side.
        select, limit: which.

    Raises:
        ValueError: an unknown split, or a number out of range.
    """
    indices = range(start, start + count)
    check_world(split, indices, size)
    return DragSet(
        {edit_name(split, seed, index): index for index in indices},
        partial(_world_sample, split, seed, size),
        truth=partial(_world_edit, split, seed, size),
        select=select,
        limit=limit,
    )


def kind_of(name: str) -> str:
    """What a numbered name says; "" if it is neither <kind>_<n> nor generated_<n>_<kind>.

    >>> kind_of("cat_8"), kind_of("generated_5_snow_leopard"), kind_of("JH_2023-09-14-1839-58")
    ('cat', 'snow_leopard', '')
    """
    found = NUMBERED.fullmatch(name)
    return (found["last"] or found["first"]) if found else ""


def category_of(name: str) -> str:
    """The folder that a name begins with, or else its kind.

    >>> category_of("animals/JH_2023-09-14-1839-58"), category_of("art_0")
    ('animals', 'art')
    """
    first, slash, _ = name.partition("/")
    return first if slash else kind_of(name)


def _category_of_kind(of_kind: Mapping[str, str], name: str) -> str:
    return of_kind.get(kind_of(name), "")


def _world_edit(split: str, seed: int, size: int, index: int) -> WorldEdit:
    return world_edit(split, seed, index, size)


def _world_sample(split: str, seed: int, size: int, index: int) -> DragSample:
    return to_sample(world_edit(split, seed, index, size))


def _path(root: Path_) -> Path:
    """`~` is the home folder, which shells leave in data.root=~/x; Hydra makes a number of 2024."""
    return Path(str(root)).expanduser()


def _folders(root: Path_, *marks: str) -> dict[str, Path]:
    """The folders that hold one of the marks: the root itself, or such as are below it."""
    root = _path(root)
    if any((root / mark).exists() for mark in marks):
        return {root.resolve().name: root}
    found = {
        name: path
        for name, path in _below(root, "*/", "*/*/").items()
        if any((path / mark).exists() for mark in marks)
    }
    if not found:
        raise ValueError(f"{root} holds no samples: expected folders with {' or '.join(marks)}")
    return found


def _below(root: Path, *patterns: str) -> dict[str, Path]:
    """What matches below a folder, by its path from there, sorted; hidden names are left out."""
    if not root.is_dir():
        raise ValueError(f"there is no folder {root} (`gooddrag data` says where data come from)")
    paths = [path.relative_to(root) for pattern in patterns for path in root.glob(pattern)]
    seen = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    return {path.as_posix(): root / path for path in sorted(seen, key=Path.as_posix)}
