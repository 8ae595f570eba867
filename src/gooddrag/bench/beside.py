"""Several folders of results at once, and their GScore side by side.

A model that rates edits compares: of several methods each edit is rated beside the others', in one
question, in an order that the sample and the repeat decide. Every method's run asks the same
questions; the first one pays, the others find the answers on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gooddrag.bench.reading import labelled_runs
from gooddrag.bench.results import Results
from gooddrag.data.images import read_image
from gooddrag.metrics.base import SampleMean, check_sizes
from gooddrag.metrics.gscore import Judge


@dataclass(frozen=True)
class Theirs:
    """Somebody's results: a folder of pictures, or a run of the benchmark with its seed."""

    label: str
    folder: Path
    seed: int


def theirs_in(folders: Sequence[Path], label: str | None, seed: int) -> list[Theirs]:
    """The results in folders, of which some may hold runs of the benchmark.

    Args:
        folders: of results, or of runs, at any depth.
        label: what tables call them; None takes the folder's name, or the run's.
        seed: of results that are no run.

    Raises:
        ValueError: one label for several, or two of one name.
    """
    found = []
    for folder in folders:
        runs = labelled_runs([folder]) if folder.is_dir() else []
        found += [Theirs(*run) for run in runs] or [Theirs(folder.resolve().name, folder, seed)]
    if label is not None and len(found) > 1:
        raise ValueError(f"label={label} is for one folder of results, found {len(found)}")
    if label is not None:
        found = [Theirs(label, found[0].folder, found[0].seed)]
    names = [(theirs.label, theirs.seed) for theirs in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two of these results are called {name[0]}: rename one's folder")
    return found


def beside_others(
    judge: Mapping[str, Any], own: Theirs, all_: Sequence[Theirs], reading: Mapping[str, Any]
) -> dict[str, Any]:
    """GScore's configuration where a method's edits are rated beside the others' of its seed.

    `reading` is what `Results` is given beside its folder.
    """
    others = {t.label: str(t.folder) for t in all_ if t.seed == own.seed and t != own}
    return {
        "_target_": f"{GScoreBeside.__module__}.{GScoreBeside.__name__}",
        "judge": judge,
        "own": own.label,
        "others": others,
        **reading,
    }


class GScoreBeside(SampleMean):
    """A method's mean GScore beside others, and the share of questions that failed.

    Where one of the others has no picture, or one of another size, it is left out of the question.

    Args:
        judge: rates the edits.
        own: the method's label.
        others: the folder of results of each other method.
        reading: names and shared, see `Results`.

    Raises:
        ValueError: no such folder.
    """

    higher_is_better = True

    def __init__(
        self, *, judge: Judge, own: str, others: Mapping[str, str], **reading: Any
    ) -> None:
        super().__init__(["gscore", "gscore_failed"])
        self.judge, self.own = judge, own
        self.others = {label: Results(folder=path, **reading) for label, path in others.items()}

    def update(self, source: Tensor, edited: Tensor, name: str) -> None:
        """Count one edit.

        Args:
            source, edited: RGB in [0, 1].
            name: the sample's.
        """
        edits = {self.own: edited}
        for label, results in self.others.items():
            with suppress(ValueError):
                picture = read_image(results.find(name)).to(edited.device)
                check_sizes(source, picture)
                edits[label] = picture
        given = self.judge(source, edits, name)
        ours = [scores[self.own] for scores in given if scores is not None]
        mean = sum(ours) / len(ours) if ours else torch.nan
        self.add({"gscore": mean, "gscore_failed": 1 - len(ours) / len(given)})
