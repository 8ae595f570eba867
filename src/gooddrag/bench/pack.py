"""The records of many runs in one small archive, to report on them elsewhere or to go on with them.

An archive is laid out as the runs are (records.py). What is large is left behind: trajectories, and
pictures but for those of a few samples, which go along as thumbnails. Unpacked it is a folder like
any other: reports are made of it, also together with others, and a benchmark that finds its records
in its output folder does not repeat them.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from gooddrag.bench.reading import identity
from gooddrag.bench.records import (
    PACKED,
    PICTURE,
    POINTS,
    RECORD,
    RUN,
    SAMPLES,
    SMALL,
    TRUTH,
    read_record,
    read_run,
)
from gooddrag.bench.sheet import jpeg, there
from gooddrag.data.files import replacing

ARCHIVE = "pack.tar.xz"  # where no other name is given
FORMS: dict[str, Any] = {".xz": "w:xz", ".gz": "w:gz", ".tar": "w:"}


def pack(folder: Path, archive: Path, *, pictures: int, side: int) -> int:
    """Write the records of all runs below a folder into an archive.

    Args:
        folder: of the runs.
        archive: the file, in a form that `tar` reads.
        pictures: samples whose pictures go along, of each method with its lowest seed.
        side: the longest of these, pixels.

    Returns:
        How many records there are.

    Raises:
        ValueError: no runs there, or another form.
    """
    abouts = {path.parent: read_run(path.parent) for path in sorted(folder.rglob(RUN))}
    if not abouts:
        raise ValueError(f"no results below {folder}: run gooddrag bench")
    if archive.suffix not in FORMS:
        raise ValueError(f"an archive's name ends in {', '.join(FORMS)}; found {archive.name}")
    count = 0
    shown: set[Path] = set()
    seen: set[object] = set()
    with replacing(archive) as part, tarfile.open(part, FORMS[archive.suffix]) as tar:
        for run, about in sorted(abouts.items(), key=lambda run: run[1]["seed"]):
            _add(tar, run.relative_to(folder) / RUN, _json(about))
            method = (about["data"], identity(about))
            chosen = spread(about["names"], 0 if method in seen else pictures)
            seen.add(method)
            for name in about["names"]:
                record = read_record(run / name)
                if record is None:
                    continue
                count += 1
                where = run.relative_to(folder) / name
                _add(tar, where / RECORD, _json(record | {PACKED: True}))
                if name in chosen:
                    _add_picture(tar, folder, run / name / PICTURE, side)
                    shown.add(run.parent / SAMPLES / str(record.get("sample_sha256", ""))[:16])
        for place in sorted(shown):
            for name in (POINTS, TRUTH):
                _add_picture(tar, folder, place / name, side)
    return count


def spread(names: list[str], count: int) -> list[str]:
    """As many of the names, evenly apart.

    >>> spread(["a", "b", "c", "d", "e", "f"], 2)
    ['a', 'd']
    """
    return names[:: max(1, len(names) // count)][:count] if count else []


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


def _add(tar: tarfile.TarFile, name: Path, content: bytes) -> None:
    about = tarfile.TarInfo(name.as_posix())
    about.size = len(content)
    tar.addfile(about, io.BytesIO(content))


def _add_picture(tar: tarfile.TarFile, folder: Path, path: Path, side: int) -> None:
    """A picture's thumbnail, if there is a picture."""
    found = there(path)
    if found is None:
        return
    with Image.open(found) as picture:
        small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    _add(tar, path.relative_to(folder).with_suffix(SMALL), jpeg(small))
