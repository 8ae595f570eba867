"""Pickles of arrays, read without running anything.

A pickle is a program: loading one calls what it names. Even an unpickler that lets nothing but
NumPy's own constructors through can be led to make an array of objects from bytes, which are
then followed as pointers. So the calls are written down here instead of made, and only what
describes an array of plain numbers becomes one.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

# The three globals that an array needs; NumPy 2 moved the first.
GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy", "ndarray"): "class",
    ("numpy", "dtype"): "dtype",
}
NUMBERS = re.compile("b1|[iu][1248]|f[248]")


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Read a pickle of lists, mappings, text, numbers and NumPy arrays of numbers.

    Args:
        path: the file; nothing that it asks for is run.

    Returns:
        Its content, with arrays as `np.ndarray`.

    Raises:
        ValueError: there is no such file, it is damaged, or it asks for anything else.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return _arrays(_Unpickler(io.BytesIO(content)).load())
    except _NotAllowedError as error:
        raise ValueError(
            f"{path} asks for {error}, but only lists, text, numbers and arrays are read: take "
            "it from the data set's own source (nothing of it was run)"
        ) from None
    except Exception as error:  # a damaged pickle can fail in any way
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise ValueError(f"{path} is no pickle, or is damaged ({reason})") from None


class _NotAllowedError(Exception):
    """The pickle asks for what is not allowed."""


class _Asked:
    """What a pickle asked for, written down: one of GLOBALS, its arguments, its state."""

    def __init__(self, kind: str, arguments: tuple = ()) -> None:
        self.kind, self.arguments, self.state = kind, arguments, None

    def __call__(self, *arguments: Any) -> _Asked:
        return _Asked(self.kind, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Hands out notepads in place of the three globals, and nothing else."""

    def find_class(self, module: str, name: str) -> _Asked:
        if (module, name) not in GLOBALS:
            raise _NotAllowedError(f"{module}.{name}"[:100].encode("unicode_escape").decode())
        return _Asked(GLOBALS[module, name])


def _arrays(content: Any) -> Any:
    """The content with arrays in place of what was written down for them."""
    if isinstance(content, dict):
        return {key: _arrays(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_arrays(item) for item in content]
    return _array(content) if isinstance(content, _Asked) else content


def _array(asked: _Asked) -> np.ndarray:
    """`numpy.ndarray.__reduce__` backwards: the state is (version, shape, dtype, order, bytes)."""
    if asked.kind != "array" or not isinstance(asked.state, tuple) or len(asked.state) != 5:
        raise _NotAllowedError("a call that makes no array")
    _, shape, dtype, is_fortran, values = asked.state
    if not isinstance(values, bytes):
        raise _NotAllowedError("an array of objects")
    array = np.frombuffer(values, _dtype(dtype))
    if array.size != math.prod(shape):
        raise ValueError(f"{array.size} values for an array of shape {shape}")
    return array.reshape(shape, order="F" if is_fortran else "C").copy()


def _dtype(asked: Any) -> np.dtype:
    """`numpy.dtype.__reduce__` backwards: the state is (version, byte order, ...)."""
    if not isinstance(asked, _Asked) or asked.kind != "dtype" or not asked.arguments:
        raise _NotAllowedError("an array without a kind of number")
    code, order = str(asked.arguments[0]), asked.state[1] if asked.state else "|"
    if not NUMBERS.fullmatch(code) or order not in ("<", ">", "|", "="):
        raise _NotAllowedError(f"an array of the kind {code[:20]!r}")
    return np.dtype(order + code)
