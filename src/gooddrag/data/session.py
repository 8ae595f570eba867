"""A sample as one JSON file, the project's own form. docs/data.md describes it."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gooddrag.data.files import read_json, write_bytes, write_json
from gooddrag.data.folder import labels_of, points_content
from gooddrag.data.images import Embedded, Source, encode_png, read_image, read_mask, to_uint8
from gooddrag.data.points import parse_points
from gooddrag.types import DragSample

FORMAT, VERSION = "gooddrag-session", 1
EMBEDDED = "data:image/png;base64,"
NEEDED = {"format", "version", "image", "points"}
KEYS = NEEDED | {"name", "mask", "prompt", "category", "task", "regions"}
Path_ = str | os.PathLike[str]


def write_session(
    sample: DragSample, path: Path_, embed: bool = True, overwrite: bool = False
) -> None:
    """Write a sample as a session, losslessly for pictures of 8 bits.

    Args:
        sample: all of it is kept.
        path: the file, say cat.json; its folder is made if it is not there.
        embed: put picture and mask into the file; else they become cat.image.png and
            cat.mask.png beside it, and the file refers to them.
        overwrite: replace files that are there.

    Raises:
        ValueError: a file is there already and `overwrite` is off.
        OSError: the files cannot be written.
    """
    path = Path(path)
    pictures = {"image": encode_png(to_uint8(sample.image))}
    if sample.mask is not None:
        pictures["mask"] = encode_png(to_uint8(sample.mask))
    files = {} if embed else {key: path.with_name(f"{path.stem}.{key}.png") for key in pictures}
    held = [file for file in (path, *files.values()) if file.exists()]
    if held and not overwrite:
        raise ValueError(f"{held[0]} exists already: give another file or overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    for key, file in files.items():
        write_bytes(file, pictures[key])
    said = {
        key: files[key].name if files else EMBEDDED + base64.b64encode(png).decode()
        for key, png in pictures.items()
    }
    head = {"format": FORMAT, "version": VERSION, "name": sample.name}
    write_json(path, head | points_content(sample) | said)


def read_session(path: Path_) -> DragSample:
    """Read a session.

    Args:
        path: the file; pictures that it refers to are looked for from its folder.

    Raises:
        ValueError: it is no session, of a later version, or a part cannot be used.
    """
    path = Path(path)
    content = _checked(path, read_json(path))
    pixels = read_image(_picture(path, "image", content["image"]))
    mask = content.get("mask")
    size = (pixels.shape[1], pixels.shape[2])
    mask = None if mask is None else read_mask(_picture(path, "mask", mask), size)
    name = content.get("name", path.stem)
    try:
        if not isinstance(name, str) or not name:
            raise ValueError(f'"name" must be text, found {name!r}')
        handles, targets = parse_points(content["points"])
        return DragSample(pixels, handles, targets, mask, name=name, **labels_of(content))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _checked(path: Path, content: object) -> Mapping[str, Any]:
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise ValueError(f'{path} is no session: it should say "format": "{FORMAT}"')
    version = content.get("version")
    if version != VERSION:
        raise ValueError(
            f"{path} is a session of version {version!r}, and this program reads {VERSION}: "
            "take the GoodDrag that wrote it, or a later one"
        )
    missing, unknown = sorted(NEEDED - set(content)), sorted(set(content) - KEYS)
    if missing or unknown:
        wrong = f"has no {missing[0]!r}" if missing else f"has an unknown {unknown[0]!r}"
        raise ValueError(f"{path} {wrong}: a session holds {', '.join(sorted(KEYS))}")
    return content


def _picture(path: Path, key: str, text: object) -> Source:
    """What a session says of a picture: its bytes, or where it is from the session's folder."""
    if not isinstance(text, str) or not text:
        raise ValueError(f'{path}: "{key}" must be a file\'s name or {EMBEDDED}..., found {text!r}')
    if not text.startswith("data:"):
        return path.parent / text
    head, _, content = text.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64")):
        raise ValueError(f'{path}: "{key}" must begin with {EMBEDDED}, found {head[:60]!r}')
    try:
        return Embedded(base64.b64decode(content, validate=True), f"the {key} in {path}")
    except ValueError as error:
        raise ValueError(f'{path}: "{key}" is no base64 ({error}): write it again') from None
