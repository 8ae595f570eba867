"""Somebody's folder of results as a method, so that it is scored like one of ours."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from gooddrag.bench.records import RUN, TABLE, Run, read_run
from gooddrag.data.folder import SUFFIXES
from gooddrag.data.images import read_image
from gooddrag.events import Phases
from gooddrag.memory import peak_memory
from gooddrag.methods.base import Editor
from gooddrag.types import DragSample, Edit


class Results(Editor):
    """Takes the edited pictures from files: <name>.png, or in the folder <name>/ one of `names`.

    A name that has folders in it, say animals/cat_1, is looked for with and without them; without
    them it may not be several samples'.

    Args:
        folder: the results.
        names: of files in a sample's folder; <name>.png is looked for there as well.
        shared: names without their folders that several samples have, see `shared_in`.

    Raises:
        ValueError: no such folder.
    """

    def __init__(
        self, *, folder: str | os.PathLike[str], names: Sequence[str], shared: Sequence[str] = ()
    ) -> None:
        self.folder, self.names = Path(folder).expanduser(), tuple(names)
        self.shared = frozenset(shared)
        if not self.folder.is_dir():
            raise ValueError(f"there is no folder {self.folder}: give results=DIR")

    def _edit(self, samples: Sequence[DragSample], seed: int, phases: Phases) -> list[Edit]:
        """Read; where the handles went is not known."""
        memory = peak_memory(torch.device("cpu"))
        return [
            Edit(
                read_image(self.find(s.name)),
                torch.full_like(s.handles, torch.nan),
                None,
                {},
                memory,
            )
            for s in samples
        ]

    def find(self, name: str) -> Path:
        """The picture of a sample.

        Raises:
            ValueError: there is none, or more than one.
        """
        bare = Path(name).name
        theirs = bare != name and bare in self.shared
        stems = [name] if theirs or bare == name else [name, bare]
        paths = [self.folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
        for stem in stems:
            inside = [*self.names, *(f"{Path(name).name}{suffix}" for suffix in SUFFIXES)]
            paths += [self.folder / stem / file for file in inside]
        found = [path for path in paths if path.is_file()]
        if not found:
            raise ValueError(
                f"no result for {name}: looked for {paths[0]} and, in {self.folder / name}/, "
                f"{', '.join(self.names)}"
                + (f" ({bare}.png may be another sample's)" if theirs else "")
            )
        if len(found) > 1:
            raise ValueError(f"two results for {name}, {found[0]} and {found[1]}: keep one")
        return found[0]

    def strangers(self, names: Sequence[str]) -> list[str]:
        """Files and folders that belong to no sample, by which a wrong name shows."""
        known = {part for name in names for part in (*Path(name).parts, Path(name).name)}
        entries = sorted(path for path in self.folder.iterdir() if not path.name.startswith("."))
        ours = known | set(self.names) | {RUN, TABLE}
        return [
            entry.name
            for entry in entries
            if entry.name not in ours and not (entry.is_file() and entry.stem in known)
        ]


def shared_in(names: Sequence[str]) -> list[str]:
    """The names without their folders that more than one sample has.

    >>> shared_in(["cats/1", "dogs/1", "dogs/2"])
    ['1']
    """
    count = Counter(Path(name).name for name in names)
    return sorted(bare for bare, times in count.items() if times > 1)


def check_origin(run: Run, folder: Path) -> None:
    """Refuse to replace the scores of another folder of results that has the same label.

    Raises:
        ValueError: the run's folder holds such.
    """
    if not (run.folder / RUN).exists():
        return
    before = Path(read_run(run.folder)["config"].get("folder", folder)).expanduser()
    if before.resolve() != folder.expanduser().resolve():
        raise ValueError(
            f"{run.folder} holds the scores of {before}: give these a name of their own, "
            "label=NAME, or another output"
        )
