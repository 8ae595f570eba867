"""From one format to another."""

from __future__ import annotations

from pathlib import Path

from gooddrag.data.dragset import DragSet
from gooddrag.data.folder import write_sample
from gooddrag.data.session import write_session

FORMATS = ("folder", "session")


def convert(
    samples: DragSet, output: Path, *, format: str, embed: bool, existing: str
) -> tuple[int, int]:
    """Write samples as folders <name>/ in Drag100's form, or as session files <name>.json.

    Args:
        samples: what to write; read one after the other.
        output: the folder that all go below.
        format: "folder" or "session".
        embed: of sessions, whether the pictures stand in the file.
        existing: samples that are there already are a reason to "refuse" before any is written,
            replaced ("overwrite"), or left as they are ("resume").

    Returns:
        How many were written, and how many were left.

    Raises:
        ValueError: an unknown format, a sample that cannot be read, or one that is there already.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be {' or '.join(FORMATS)}, found {format!r}")
    files = [output / _last_file(name, format) for name in samples.names]
    held = [file for file in files if file.exists()]
    if held and existing == "refuse":
        raise ValueError(
            f"{held[0]} exists already: choose another folder, or existing=overwrite to replace "
            "what is there, or existing=resume to keep it"
        )
    todo = [i for i, file in enumerate(files) if existing == "overwrite" or not file.exists()]
    for i in todo:
        overwrite = existing != "refuse"
        if format == "folder":
            write_sample(samples[i], files[i].parent, overwrite)
        else:
            write_session(samples[i], files[i], embed, overwrite)
    return len(todo), len(files) - len(todo)


def _last_file(name: str, format: str) -> str:
    """What is written last of a sample: with it, the sample is whole."""
    return f"{name}/points.json" if format == "folder" else f"{name}.json"
