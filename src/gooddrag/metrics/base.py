"""What the metrics share: means over samples, whose state adds up across processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class SampleMean(Metric):
    """Means of named numbers over samples.

    `update` of a subclass takes one sample, by keyword, and hands its numbers to `add`; `forward`
    returns that sample's own numbers. A number that does not apply to a sample is NaN and left out
    of its mean; where no sample has it, the mean is NaN.

    Args:
        names: of the numbers, as they stand in tables.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        zeros = torch.zeros(len(self.names), dtype=torch.float64)
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("count", zeros.clone(), dist_reduce_fx="sum")

    def add(self, numbers: Mapping[str, float | Tensor]) -> None:
        """Count one sample's numbers."""
        row = self.total.new_tensor([float(numbers[name]) for name in self.names])
        applies = ~row.isnan()
        self.total += row.where(applies, 0)
        self.count += applies

    def compute(self) -> dict[str, Tensor]:
        """The mean of each number over the samples that have it."""
        return dict(zip(self.names, self.total / self.count, strict=True))


def check_sizes(source: Tensor, edited: Tensor) -> None:
    """An edit must have its source's size.

    Raises:
        ValueError: it has another.
    """
    if source.shape != edited.shape:
        raise ValueError(
            f"the edited picture is {_size(edited)} and the source {_size(source)}: "
            "bring them to one size first"
        )


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]} x {image.shape[-2]} pixels"
