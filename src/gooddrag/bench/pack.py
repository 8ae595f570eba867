"""The records of many runs in one small archive, to report on them elsewhere or to go on with them.

An archive is laid out as the runs are (records.py). What is large is left behind: trajectories, and
pictures but for those of a few samples, which go along as thumbnails. Unpacked it is a folder like
any other: reports are made of it, also together with others, and a benchmark that finds its records
in its output folder does not repeat them. Parts of runs from several machines come together in one
folder: `unpack` adds to what is there, where `tar` would replace it.
"""

from __future__ import annotations

import io
import json
import lzma
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from gooddrag.bench.reading import identity
from gooddrag.bench.records import (
    DONE,
    PACKED,
    PICTURE,
    POINTS,
    RECORD,
    RUN,
    SAMPLES,
    SMALL,
    TRUTH,
    checked_run,
    read_record,
    read_run,
    save_run,
)
from gooddrag.bench.sheet import jpeg, there
from gooddrag.data.files import replacing, write_bytes, write_json

ARCHIVE = "pack.tar.xz"  # where no other name is given
JSONS = (RUN, RECORD)
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


def unpack(archive: Path, folder: Path) -> tuple[int, int]:
    """Add the records of an archive to a folder.

    What is there stays, but for a failure where the archive has a result. Samples and experiments
    of a run add up.

    Args:
        archive: by `pack`.
        folder: of the runs; it need not exist.

    Returns:
        How many records came, and how many are as they were.

    Raises:
        ValueError: the archive cannot be read, or is no pack; nothing is written then.
        OSError: a file cannot be written.
    """
    content = _contents(archive)
    jsons = {path: _parsed(content[path], archive / path) for path in content if path.name in JSONS}
    runs = {path.parent: checked_run(jsons[path], archive) for path in jsons if path.name == RUN}
    if not runs:
        raise ValueError(f"{archive} is no pack: gooddrag pack DIR makes one")
    for run, about in runs.items():
        save_run(folder / run, about)
    came = known = 0
    for path in content:
        place = folder / path
        if path.name == RECORD and _is_news(jsons[path], read_record(place.parent)):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, jsons[path])
            came += 1
        elif path.name == RECORD:
            known += 1
        elif path.suffix == SMALL and there(place.with_suffix(Path(PICTURE).suffix)) is None:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(place, content[path])
    return came, known


def _contents(archive: Path) -> dict[Path, bytes]:
    """An archive's files, as they are laid out.

    Raises:
        ValueError: it cannot be read, or has files that would lie elsewhere.
    """
    content: dict[Path, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if file := tar.extractfile(member):
                    content[Path(member.name)] = file.read()
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{archive} cannot be read: {error}") from None
    for path in content:
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{archive} is no pack: it has a file {path}")
    return content


def _parsed(content: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not what gooddrag pack writes")
    return found


def _is_news(record: Mapping[str, Any], before: Mapping[str, Any] | None) -> bool:
    """Whether there was none, or only a failure where this is a result."""
    if before is None:
        return True
    return bool(record.get("status") == DONE != before.get("status"))


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
