"""IF, image fidelity: 1 - LPIPS between source and edit. It rewards not editing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from gooddrag.metrics.base import SampleMean, check_sizes

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""A distance between two batches of RGB in [-1, 1]."""


@torch.no_grad()
def image_fidelity(
    source: Float[Tensor, "3 h w"], edited: Float[Tensor, "3 eh ew"], network: Perceptual, side: int
) -> Float[Tensor, ""]:
    """1 - LPIPS of the pictures, resized bilinearly to side x side.

    Source: DragDiffusion's run_eval_similarity.py:85-88.

    Args:
        source, edited: RGB in [0, 1].
        network: the distance.
        side: pixels.

    Raises:
        ValueError: the pictures' sizes differ.

    >>> grey = torch.full((3, 8, 8), 0.5)
    >>> float(image_fidelity(grey, grey, lambda a, b: (a - b).abs().mean(), side=4))
    1.0
    """
    check_sizes(source, edited)
    small = (
        functional.interpolate(image[None], (side, side), mode="bilinear") * 2 - 1
        for image in (source, edited)
    )
    return 1 - network(*small).mean()


def lpips() -> Callable[..., torch.nn.Module]:
    """The class of LPIPS as its authors publish it.

    Raises:
        ValueError: the package is not installed.
    """
    try:
        from lpips import LPIPS
    except ImportError as error:
        raise ValueError(
            f"image fidelity needs LPIPS ({error}): pip install 'gooddrag[fidelity]', or leave the "
            "metric `fidelity` out"
        ) from None
    made: Callable[..., torch.nn.Module] = LPIPS
    return made


class ImageFidelity(SampleMean):
    """Mean image fidelity over pictures, `if`.

    Always show it beside the unedited picture's, which is 1.

    Args:
        net: which LPIPS: "alex", "vgg" or "squeeze". Its weights are loaded, or come from the web,
            when it is first needed.
        side: of the compared pictures, pixels.
        network: another distance in its place.

    Raises:
        ValueError: LPIPS is needed and not installed.
    """

    higher_is_better = True

    def __init__(self, *, net: str, side: int, network: Perceptual | None = None) -> None:
        super().__init__(["if"])
        self.net, self.side, self.network = net, side, network
        if network is None:
            lpips()  # what is missing is said at once

    def update(self, source: Tensor, edited: Tensor) -> None:
        """Count one edit; RGB in [0, 1]."""
        if self.network is None:
            self.network = lpips()(net=self.net, verbose=False).eval().to(source.device)
        self.add({"if": image_fidelity(source, edited, self.network, self.side)})
