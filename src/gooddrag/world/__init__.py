"""DragWorld: procedural illustrations and drag edits whose true result is known."""

from gooddrag.world.family import TASKS
from gooddrag.world.scene import (
    FAMILIES,
    SPLITS,
    WorldEdit,
    caption,
    edit_name,
    render_edit,
    render_pictures,
)

__all__ = [
    "FAMILIES",
    "SPLITS",
    "TASKS",
    "WorldEdit",
    "caption",
    "edit_name",
    "render_edit",
    "render_pictures",
]
