"""What a sample is, in one number."""

from __future__ import annotations

import hashlib

from gooddrag.types import DragSample


def sample_digest(sample: DragSample) -> str:
    """A hash of all that is edited: picture, mask, points, regions, prompt and name.

    It is of the content, not of files: a sample has the same one in every format.
    """
    digest = hashlib.sha256(repr((sample.size, sample.prompt, sample.name)).encode())
    parts = (sample.image, sample.handles, sample.targets, sample.mask, *(sample.regions or ()))
    for tensor in parts:
        values = (
            b"" if tensor is None else tensor.detach().cpu().float().contiguous().numpy().tobytes()
        )
        digest.update(repr(None if tensor is None else tuple(tensor.shape)).encode())
        digest.update(values)
    return digest.hexdigest()
