"""What every data set is: samples in a fixed order, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from gooddrag.types import DragSample
from gooddrag.world import WorldEdit

Select = str | Sequence[str] | None


def no_category(name: str) -> str:
    """Of samples that do not say what they show."""
    return ""


class DragSet:
    """A sequence of samples.

    Args:
        entries: for each name, where its sample is. Their order is the set's.
        read: makes a sample of such a place.
        category: of a name, for samples that have none of their own.
        truth: makes the true result of such a place, if the set knows any.
        select: a name or pattern such as "cat_*", or several of them; None takes all.
        limit: how many of these at most, the first ones; None takes all.

    Attributes:
        names: of the samples, in order: `samples[i].name == samples.names[i]`.
        total: how many there are without `select` and `limit`.

    Raises:
        ValueError: a pattern matches nothing, or the limit is no whole number from 1 on.
    """

    def __init__(
        self,
        entries: Mapping[str, Any],
        read: Callable[[Any], DragSample],
        *,
        category: Callable[[str], str] = no_category,
        truth: Callable[[Any], WorldEdit] | None = None,
        select: Select = None,
        limit: int | None = None,
    ) -> None:
        whole = isinstance(limit, int) and not isinstance(limit, bool)
        if limit is not None and not (whole and limit > 0):
            raise ValueError(f"limit must be a whole number from 1 on, or null; found {limit!r}")
        self.names = _selected(tuple(entries), select)[:limit]
        self.total = len(entries)
        self._entries = {name: entries[name] for name in self.names}
        self._read, self._category, self._truth = read, category, truth

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> DragSample:
        name = self.names[i]
        sample = self._read(self._entries[name])
        return replace(sample, name=name, category=sample.category or self._category(name))

    def __iter__(self) -> Iterator[DragSample]:
        return (self[i] for i in range(len(self)))

    def truth(self, i: int) -> WorldEdit | None:
        """The true result of a sample, where the set has one. The sample itself never does."""
        return None if self._truth is None else self._truth(self._entries[self.names[i]])


def _selected(names: tuple[str, ...], select: Select) -> tuple[str, ...]:
    """The names that any of the patterns matches, in the order of the set."""
    if select is None:
        return names
    several = isinstance(select, Sequence) and not isinstance(select, str)
    patterns = [str(pattern) for pattern in (select if several else [select])]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            some = ", ".join(names[:3])
            raise ValueError(f"select: no sample is called {pattern!r}; names are such as {some}")
    return tuple(name for name in names if any(fnmatchcase(name, p) for p in patterns))
