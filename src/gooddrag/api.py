"""From Python: a method as its recipe describes it, and an edit with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gooddrag.composition import composer, groups_among, instantiate, unresolved
from gooddrag.settings import check_numbers

if TYPE_CHECKING:
    from gooddrag.events import EditCallback
    from gooddrag.types import DragSample, Edit


def load_method(name: str = "gooddrag", overrides: Sequence[str] = ()) -> Any:
    """A method as conf/ describes it, with its model loaded.

    Args:
        name: a recipe of conf/method.
        overrides: in Hydra's form, say ["backbone=sd15", "method.B=5", "schedule=drag_first"].

    Returns:
        A callable that takes samples and returns edits (`gooddrag.methods.base.Method`).

    Raises:
        ValueError: settings that cannot work, or a checkpoint that cannot be loaded.
    """
    words = [f"method={name}", *overrides]
    with composer() as compose:
        cfg = compose("edit", words)
        check_numbers(unresolved(cfg), unresolved(compose("edit", groups_among(words))))
    return instantiate(cfg.editor)


def edit(
    sample: DragSample,
    method: Any = None,
    *,
    seed: int = 0,
    callbacks: Sequence[EditCallback] = (),
) -> Edit:
    """Perform one drag edit.

    Args:
        sample: the picture and its points.
        method: from `load_method`; None takes GoodDrag on the built-in model.
        seed: for methods that draw numbers.
        callbacks: hear about progress.

    Raises:
        ValueError: the sample does not fit the method.
    """
    method = method or load_method()
    return method([sample], seed=seed, callbacks=callbacks)[0]
