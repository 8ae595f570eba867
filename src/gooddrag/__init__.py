"""GoodDrag: drag editing with diffusion models (arXiv 2404.07206).

>>> from gooddrag import DragSample, edit, load_method
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gooddrag.types import DragSample, Edit

if TYPE_CHECKING:
    from gooddrag.cli import edit, load_method

__all__ = ["DragSample", "Edit", "edit", "load_method"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load Hydra and the models' libraries only when they are needed."""
    if name in ("edit", "load_method"):
        from gooddrag import cli

        return getattr(cli, name)
    raise AttributeError(f"module 'gooddrag' has no attribute {name!r}")
