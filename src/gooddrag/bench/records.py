"""What a benchmark leaves on disk, and what of it is still valid.

    OUTPUT/
      <data>-<method>-seed<n>-<key>/     a run: one method, one seed
        run.json                         what is run on what, and on which samples
        table.jsonl                      a row for each record, appended as they come
        <sample>/                        edited.png, trajectory.json and, last, record.json
      samples/<digest>/                  points.png and, if it is known, truth.png: for all runs

A record is written when all that it speaks of is there, each file atomically, so that a process may
end at any moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from gooddrag.data.files import plain, read_json, write_json

RUN, RECORD, TABLE, PICTURE = "run.json", "record.json", "table.jsonl", "edited.png"
SAMPLES, POINTS, TRUTH = "samples", "points.png", "truth.png"
SMALL, PACKED = ".jpg", "packed"  # in a pack: of pictures, and what its records say
FORMAT = {"format": "gooddrag-bench", "version": 1}
DONE, FAILED, MISSING = "done", "failed", "missing"
# Of a method's configuration, what changes no result: where files are kept, what it runs on. (The
# results that `gooddrag score` reads are known by their label.) A cache that is null stays: then an
# edit's seconds hold the training of its LoRA.
NOT_THE_METHOD = ("cache", "device", "folder")
# What no edit is made by; the sources of all else are the code's version.
NOT_THE_EDIT = ("bench", "callbacks", "metrics", "pretrain", "__pycache__")
WEIGHTS = "assets/"  # the built-in model: all of its files count
NOT_THE_EDIT_FILES = (
    *("__init__", "cli", "commands", "api", "request", "jobs", "composition", "manual", "plots"),
)
DIGITS = 8  # of a digest in the name of a folder or in a table


@dataclass(frozen=True)
class Run:
    """One method with one seed on one data set.

    Attributes:
        output: the folder that all runs go below.
        data: the data set's name.
        method: the method's name.
        label: what tables call it.
        changes: the overrides that make the method another one; tables add those that differ.
        config: the method's resolved configuration, for the seed 0.
        seed: of this run.
        code: the version of the code, see `code_version`.
        names: of the samples.
        experiments: that it is part of, and what it is called in each.
    """

    output: Path
    data: str
    method: str
    label: str
    changes: Sequence[str]
    config: Mapping[str, Any]
    seed: int
    code: str
    names: Sequence[str]
    experiments: Mapping[str, str]

    @property
    def key(self) -> dict[str, Any]:
        """What an edit depends on, beside its sample; and a label of the user's own.

        Two labels are two rows, say of one method in batches and one by one.
        """
        named = {} if self.label == self.method else {"label": self.label}
        return named | {
            "method": self.method,
            "config_sha256": digest_of(without(self.config, NOT_THE_METHOD)),
            "seed": self.seed,
            "code": self.code,
        }

    @property
    def folder(self) -> Path:
        """Another key has another folder: nothing of another run is ever replaced."""
        words = (self.data, self.method, f"seed{self.seed}", digest_of(self.key)[:DIGITS])
        return self.output / file_name("-".join(words))

    def folder_of(self, name: str) -> Path:
        """Where a sample's record and pictures are."""
        return self.folder / name

    def save(self) -> None:
        """Write run.json; samples and experiments that it named before stay named."""
        about: dict[str, Any] = {"data": self.data, "label": self.label, "changes": self.changes}
        about |= {"experiments": self.experiments, "config": self.config, "names": self.names}
        save_run(self.folder, FORMAT | self.key | about)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row to table.jsonl in one write at its end, so that processes can share it."""
        line = json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n"
        with open(self.folder / TABLE, "ab", buffering=0) as file:
            file.write(line.encode())
            os.fsync(file.fileno())


def file_name(text: str) -> str:
    """The text without what shells, web pages or file systems read in a way of their own.

    >>> file_name("world split=validation-gooddrag")
    'world_split_validation-gooddrag'
    """
    return re.sub(r"[^\w.+-]+", "_", text)


def save_run(folder: Path, about: Mapping[str, Any]) -> None:
    """Write run.json; samples and experiments that one there names stay named.

    Raises:
        ValueError: see `checked_run`.
    """
    if (folder / RUN).exists():
        before = read_run(folder)
        names = dict.fromkeys([*about["names"], *before["names"]])
        experiments = before.get("experiments", {}) | about.get("experiments", {})
        about = {**about, "experiments": experiments, "names": list(names)}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN, about)


def read_run(folder: Path) -> dict[str, Any]:
    """A run's run.json.

    Raises:
        ValueError: it is missing, or see `checked_run`.
    """
    return checked_run(read_json(folder / RUN), folder / RUN)


def checked_run(content: object, path: Path) -> dict[str, Any]:
    """What a run.json holds.

    Raises:
        ValueError: it is damaged, or of a later version.
    """
    found = content if isinstance(content, dict) else {}
    if {key: found.get(key) for key in FORMAT} != FORMAT:
        raise ValueError(
            f"{path} is no run of version {FORMAT['version']}: take the GoodDrag that wrote it"
        )
    return found


def read_record(folder: Path) -> dict[str, Any] | None:
    """A sample's record; None if there is none that can be read."""
    try:
        content = read_json(folder / RECORD)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def row_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as a row of a table: no lists, each phase's seconds and each metric by itself."""
    row = {key: value for key, value in record.items() if not isinstance(value, (list, dict))}
    row.pop("traceback", None)
    row |= {f"seconds_{phase}": value for phase, value in record.get("seconds", {}).items()}
    return row | dict(record.get("metrics") or {})


def rows_of(folder: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of a run's samples; one without a record is `MISSING`."""
    found = []
    for name in names:
        record = read_record(folder / name)
        missing = {"name": name, "status": MISSING}
        found.append((missing if record is None else row_of(record)) | {"folder": str(folder)})
    return found


def digest_of(content: object) -> str:
    """A hash of plain content, in whatever order its keys are."""
    text = json.dumps(plain(content), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def without(settings: Any, keys: Sequence[str]) -> Any:
    """The settings without what these keys are set to, at any depth; a null stays."""
    if isinstance(settings, Mapping):
        kept = {k: value for k, value in settings.items() if k not in keys or value is None}
        return {k: without(value, keys) for k, value in kept.items()}
    if isinstance(settings, (list, tuple)):
        return [without(value, keys) for value in settings]
    return settings


@cache
def code_version() -> str:
    """The package's version and a hash of the sources and built-in weights that an edit is made by.

    The version alone stays the same while the code is worked on.
    """
    digest = hashlib.sha256()
    for name, content in sorted(_sources(files("gooddrag"), "")):
        digest.update(name.encode() + b"\0" + content + b"\0")
    return f"{version('gooddrag')}+{digest.hexdigest()[:DIGITS]}"


def _sources(folder: Traversable, parent: str) -> Iterable[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name not in NOT_THE_EDIT:
            yield from _sources(entry, f"{parent}{entry.name}/")
        stem, _, suffix = entry.name.rpartition(".")
        is_source = suffix == "py" and (parent or stem not in NOT_THE_EDIT_FILES)
        if entry.is_file() and (is_source or parent.startswith(WEIGHTS)):
            yield parent + entry.name, entry.read_bytes()
