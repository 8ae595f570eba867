"""Reading and writing pictures, masks, points and samples."""

from gooddrag.data.folder import make_sample, read_sample, write_sample
from gooddrag.data.images import read_image, read_mask, to_uint8, write_png
from gooddrag.data.points import parse_points
from gooddrag.data.session import read_session, write_session

__all__ = [
    "make_sample",
    "parse_points",
    "read_image",
    "read_mask",
    "read_sample",
    "read_session",
    "to_uint8",
    "write_png",
    "write_sample",
    "write_session",
]
