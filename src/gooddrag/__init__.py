"""GoodDrag: drag editing with diffusion models (arXiv 2404.07206).

>>> from gooddrag import DragSample, edit, load_method
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# OpenMP's threads spin while they wait. On a machine with other work each parallel region then
# waits for a time slice (a forward pass of 0.07 s was seen to take 5.3 s); not spinning at all
# doubles it on an idle one. A short spin is good on both. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

if TYPE_CHECKING:
    from gooddrag.api import edit, load_data, load_method, load_metrics
    from gooddrag.types import DragSample, Edit

__all__ = ["DragSample", "Edit", "edit", "load_data", "load_method", "load_metrics"]
__version__ = "0.1.0"


HOMES = {
    "DragSample": "types",
    "Edit": "types",
    "edit": "api",
    "load_data": "api",
    "load_method": "api",
    "load_metrics": "api",
}


def __getattr__(name: str) -> Any:
    """Load torch, Hydra and the models' libraries only when they are needed."""
    if name not in HOMES:
        raise AttributeError(f"module 'gooddrag' has no attribute {name!r}")
    return getattr(import_module(f"gooddrag.{HOMES[name]}"), name)
