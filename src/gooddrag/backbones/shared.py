"""One backbone for all who want the same: the jobs of a sweep, the metrics of one table.

Loading a model, moving it to a device and recording its CUDA graphs takes longer than some jobs.
Sharing is asked for (`sharing`), since two edits at once in one backbone would disturb each other.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gooddrag.backbones.stable_diffusion import StableDiffusion


class Shelf:
    """Backbones by their settings; those that the present job has no use for go when one comes."""

    def __init__(self) -> None:
        self._kept: dict[str, StableDiffusion] = {}
        self._used: set[str] = set()

    def clear_use(self) -> None:
        """Count anew what is used."""
        self._used.clear()

    def get(self, settings: dict[str, Any]) -> StableDiffusion:
        """The backbone of these settings, as it was loaded.

        One that had to save memory stays so, which a fresh one would not: it is loaded anew.
        """
        from gooddrag.backbones.stable_diffusion import StableDiffusion

        key = repr(sorted(settings.items()))
        found = self._kept.get(key)
        if found is None or found.low_memory != settings["low_memory"]:
            del found
            self._kept = {k: v for k, v in self._kept.items() if k in self._used and k != key}
            gc.collect()  # they have cycles
            self._kept[key] = StableDiffusion(**settings)
        self._used.add(key)
        return self._kept[key]


_shelf: Shelf | None = None


@contextmanager
def sharing() -> Iterator[None]:
    """While active, backbones of equal settings are one; within another one, it is the outer's."""
    global _shelf
    before, _shelf = _shelf, _shelf or Shelf()
    try:
        yield
    finally:
        _shelf = before


def shelf() -> Shelf | None:
    """What is shared now; others may keep things as long as it is."""
    return _shelf


def next_job() -> None:
    """What only jobs before have used may go now; nothing happens outside of `sharing`."""
    if _shelf is not None:
        _shelf.clear_use()
        gc.collect()  # the cycles that an edit leaves hold tensors of the device


def stable_diffusion(**settings: Any) -> StableDiffusion:
    """A `StableDiffusion`; while `sharing`, one for all that have the same settings.

    Args:
        settings: see `StableDiffusion`.
    """
    from gooddrag.backbones.stable_diffusion import StableDiffusion

    return StableDiffusion(**settings) if _shelf is None else _shelf.get(settings)
