"""How sure is a mean? Percentile bootstrap of means and of paired differences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Numbers drawn at a time, so that many samples do not need much memory.
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Interval:
    """A mean over `count` samples and the interval that holds it with some probability."""

    mean: float
    low: float
    high: float
    count: int


def bootstrap_mean(
    values: Float[Tensor, " n"], *, resamples: int, level: float, generator: torch.Generator
) -> Interval:
    """The mean and its percentile interval over samples drawn again with replacement.

    Args:
        values: one number for each sample.
        resamples: how often all samples are drawn again.
        level: the interval's probability, say 0.95.
        generator: draws the samples, on the CPU.

    Raises:
        ValueError: no values, a value that is not finite, or settings out of range.

    >>> fixed = torch.full((5,), 2.0)
    >>> bootstrap_mean(fixed, resamples=9, level=0.95, generator=torch.Generator())
    Interval(mean=2.0, low=2.0, high=2.0, count=5)
    """
    if not len(values) or not values.isfinite().all():
        found = f"{int((~values.isfinite()).sum())} of {len(values)} that are not"
        raise ValueError(f"a bootstrap needs finite values, and at least one; found {found}")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"resamples must be positive and level lie between 0 and 1, found {resamples}, {level}"
        )
    values, count = values.detach().double().cpu(), len(values)
    means = torch.cat(
        [
            values[torch.randint(count, (rows, count), generator=generator)].mean(dim=1)
            for rows in _portions(resamples, max(1, _CHUNK // count))
        ]
    )
    tail = (1 - level) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return Interval(float(values.mean()), low, high, count)


def bootstrap_difference(
    before: Float[Tensor, " n"],
    after: Float[Tensor, " m"],
    *,
    resamples: int,
    level: float,
    generator: torch.Generator,
) -> Interval:
    """The mean of after - before, paired sample by sample, and its interval.

    Args:
        before, after: one number for each sample, the same samples in the same order.
        resamples, level, generator: as of `bootstrap_mean`.

    Raises:
        ValueError: unequal numbers of samples, or as `bootstrap_mean`.
    """
    if len(before) != len(after):
        raise ValueError(f"samples must come in pairs, found {len(before)} and {len(after)}")
    difference = after.double() - before.double()
    return bootstrap_mean(difference, resamples=resamples, level=level, generator=generator)


def _portions(total: int, most: int) -> list[int]:
    full, rest = divmod(total, most)
    return [most] * full + [rest] * (rest > 0)
