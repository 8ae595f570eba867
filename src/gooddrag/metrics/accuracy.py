"""DAI, the dragging accuracy index: does the source's patch lie at the target?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gooddrag.metrics.base import SampleMean, check_sizes

NORMS = ("once", "official")


def patch_errors(
    source: Float[Tensor, "3 h w"],
    edited: Float[Tensor, "3 eh ew"],
    handles: Float[Tensor, "n 2"],
    targets: Float[Tensor, "n 2"],
    gamma: int,
) -> Float[Tensor, " n"]:
    """|| src[Omega(p_i, gamma)] - out[Omega(q_i, gamma)] ||^2 / (1 + 2 gamma)^2 of each pair.

    Where a patch reaches beyond the picture, its mean is over the pixels that both patches have;
    the official script cuts the two differently there, and fails (compute_DAI.py:16-19).

    Args:
        source, edited: RGB in [0, 1].
        handles, targets: p_i and q_i, (x, y) in pixels.
        gamma: the patch's radius, pixels.

    Raises:
        ValueError: the pictures' sizes differ.

    >>> black, white = torch.zeros(3, 9, 9), torch.ones(3, 9, 9)
    >>> patch_errors(black, white, torch.tensor([[4.0, 4]]), torch.tensor([[4.0, 5]]), gamma=1)
    tensor([3.])
    """
    check_sizes(source, edited)
    height, width = source.shape[1:]
    steps = torch.arange(-gamma, gamma + 1, device=source.device)
    patches, inside = [], []
    for image, points in ((source, handles), (edited, targets)):
        x, y = points.round().long().to(source.device)[:, :, None].add(steps).unbind(dim=1)
        inside.append(((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None])
        rows, columns = y.clamp(0, height - 1), x.clamp(0, width - 1)
        patches.append(image[:, rows[:, :, None], columns[:, None]])
    squares = (patches[0] - patches[1]).square().sum(dim=0)
    both = inside[0] & inside[1]
    return (squares * both).sum(dim=(1, 2)) / both.sum(dim=(1, 2))


def dragging_accuracy(errors: Float[Tensor, " n"], norm: str) -> Float[Tensor, ""]:
    """DAI_gamma of one picture from its pairs' `patch_errors`; lower is better.

    Args:
        errors: of the picture's l pairs.
        norm: "once" divides their sum by l, as the paper writes; "official" by l^2, as the official
            script does (compute_DAI.py:39,41).

    Raises:
        ValueError: an unknown norm.

    >>> errors = torch.tensor([1.0, 3.0])
    >>> float(dragging_accuracy(errors, "once")), float(dragging_accuracy(errors, "official"))
    (2.0, 1.0)
    """
    if norm not in NORMS:
        raise ValueError(f"DAI's norm must be once or official, found {norm!r}")
    return errors.mean() if norm == "once" else errors.mean() / len(errors)


class DraggingAccuracy(SampleMean):
    """Mean DAI over pictures: `dai_GAMMA`, and in the official norm `dai_official_GAMMA`.

    Args:
        gammas: radii of the patches, pixels.
        norms: of "once" and "official", see `dragging_accuracy`.

    Raises:
        ValueError: an unknown norm.
    """

    higher_is_better = False

    def __init__(self, *, gammas: Sequence[int], norms: Sequence[str]) -> None:
        if not norms or not set(norms) <= set(NORMS):
            raise ValueError(f"DAI's norms are once and official, found {', '.join(norms)}")
        names = {"once": "dai", "official": "dai_official"}
        super().__init__([f"{names[norm]}_{gamma}" for norm in norms for gamma in gammas])
        self.gammas, self.norms = tuple(gammas), tuple(norms)

    def update(self, source: Tensor, edited: Tensor, handles: Tensor, targets: Tensor) -> None:
        """Count one edit; arguments as of `patch_errors`."""
        pairs = [patch_errors(source, edited, handles, targets, gamma) for gamma in self.gammas]
        found = [dragging_accuracy(errors, norm) for norm in self.norms for errors in pairs]
        self.add(dict(zip(self.names, found, strict=True)))
