"""What listens to an edit. W&B and CSV are imported by their own modules when conf names them."""

from gooddrag.callbacks.distance_maps import DistanceMaps
from gooddrag.callbacks.output import done_already, prepare, sample_folders
from gooddrag.callbacks.progress import ProgressBar
from gooddrag.callbacks.video import DragVideo
from gooddrag.callbacks.writer import EditWriter

__all__ = [
    "DistanceMaps",
    "DragVideo",
    "EditWriter",
    "ProgressBar",
    "done_already",
    "prepare",
    "sample_folders",
]
