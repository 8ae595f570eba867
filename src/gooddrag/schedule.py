"""Schedules: how many drag operations each denoising step gets, from the inverted latent on.

GoodDrag's claim is about ORDER alone: alternating drag and denoise (AlDD) spreads the same K
operations over several denoising steps. So a schedule is data, a list of counts, and an ablation
is another list.
"""

from __future__ import annotations


def aldd(K: int, B: int) -> list[int]:
    """Alternating drag and denoise: B operations a step until K are done.

    >>> aldd(K=70, B=10)
    [10, 10, 10, 10, 10, 10, 10]
    >>> aldd(K=7, B=3)
    [3, 3, 1]
    """
    _check(K=K, B=B)
    full, rest = divmod(K, B)
    return [B] * full + [rest] * (rest > 0)


def drag_first(K: int) -> list[int]:
    """All operations before the first denoising step, as DragDiffusion does.

    >>> drag_first(K=70)
    [70]
    """
    _check(K=K)
    return [K]


def spread(K: int, steps: int) -> list[int]:
    """K operations over a number of denoising steps, as evenly as whole numbers allow.

    >>> spread(K=5, steps=4)
    [1, 1, 1, 2]
    >>> spread(K=2, steps=4)
    [0, 1, 0, 1]
    """
    _check(K=K, steps=steps)
    return [(i + 1) * K // steps - i * K // steps for i in range(steps)]


def spaced(K: int, B: int, every: int) -> list[int]:
    """B operations at every n-th denoising step until K are done, and none in between.

    >>> spaced(K=7, B=3, every=2)
    [3, 0, 3, 0, 1]
    """
    _check(every=every)
    counts = aldd(K, B)
    steps = range(every * (len(counts) - 1) + 1)
    return [counts[i // every] if i % every == 0 else 0 for i in steps]


def late(K: int, B: int, after: float, steps: int, strength: float) -> list[int]:
    """AlDD after a part of the denoising without dragging; K = 0 never drags.

    Args:
        K, B: as of `aldd`.
        after: the part.
        steps, strength: of the ladder, see `gooddrag.ddim.Timesteps`.

    >>> late(K=3, B=2, after=0.4, steps=20, strength=0.5)
    [0, 0, 0, 0, 2, 1]
    >>> late(K=0, B=2, after=0.4, steps=20, strength=0.5)
    []
    """
    if not 0 <= after < 1:
        raise ValueError(f"method.after is a part, from 0 to below 1, found {after}")
    return [0] * round(after * round(steps * strength)) + aldd(K, B) if K else []


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, found {count!r}")
