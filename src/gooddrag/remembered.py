"""What was made last, for the next who asks for the same: another drag of the same picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Remembered(Generic[T]):
    """The last result of one function, given again as long as its arguments are equal.

    Only one is kept; it goes before another is made.
    """

    def __init__(self) -> None:
        self._last: tuple[object, T] | None = None

    def find(self, arguments: object) -> T | None:
        """The last result, if it was made of these; if not, it is let go."""
        if self._last is not None and not equal(self._last[0], arguments):
            self.forget()
        return None if self._last is None else self._last[1]

    def get(self, arguments: object, make: Callable[[], T]) -> T:
        """The result for these arguments, made where it is not at hand.

        Args:
            arguments: all that the result depends on: tensors, and nested mappings and sequences
                of them, that nobody changes in place, and what can be compared.
            make: makes it.
        """
        found = self.find(arguments)
        if found is None:
            found = make()
            self.keep(arguments, found)
        return found

    def forget(self) -> None:
        """Let it go."""
        self._last = None

    def keep(self, arguments: object, result: T) -> None:
        """Remember a result that was made elsewhere."""
        self._last = (arguments, result)


def equal(one: object, other: object) -> bool:
    """Whether all tensors in both are the same to the bit, and all else is equal.

    >>> equal([torch.ones(2), "a"], [torch.ones(2), "a"]), equal({"b": torch.ones(2)}, {})
    (True, False)
    """
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = (one.dtype, one.device) == (other.dtype, other.device)
        return alike and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    if isinstance(one, Sequence) and isinstance(other, Sequence):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other
