"""Whether settings are of the kind that they should be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

WHOLE, NUMBER = "a whole number", "a number"


def check_numbers(found: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Make sure that numbers are still numbers after the overrides.

    Args:
        found: the configuration with all overrides.
        defaults: the same without them; only what both have is looked at, and text may be all.

    Raises:
        ValueError: text, NaN or infinity for a number, a fraction for a whole number, and so on.

    >>> check_numbers({"method": {"K": 2.5}}, {"method": {"K": 70}})
    Traceback (most recent call last):
    ValueError: method.K must be a whole number, found 2.5
    """
    for key, default, value in _leaves(defaults, found):
        if value is None or default is None or isinstance(default, str):
            continue
        wanted, kind = _kind(default), _kind(value)
        if kind != wanted and (wanted, kind) != (NUMBER, WHOLE):
            raise ValueError(f"{key} must be {wanted}, found {value!r}")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return WHOLE
    if isinstance(value, float) and math.isfinite(value):
        return NUMBER
    return f"a {type(value).__name__}" if isinstance(value, (list, dict)) else "something else"


def _leaves(
    defaults: Mapping[str, Any], found: Mapping[str, Any], parent: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(key, default, value) of all settings that both have, in order."""
    for name, default in defaults.items():
        key = f"{parent}{name}"
        if name not in found:
            continue
        if isinstance(default, Mapping) and isinstance(found[name], Mapping):
            yield from _leaves(default, found[name], f"{key}.")
        else:
            yield key, default, found[name]
