"""DragWorld: procedural illustrations and drag edits whose true result is known."""

from gooddrag.world.family import TASKS
from gooddrag.world.scene import (
    FAMILIES,
    SPLITS,
    WorldEdit,
    caption,
    edit_name,
    material_points,
    render_edit,
    render_pictures,
    render_scenes,
)

__all__ = [
    "FAMILIES",
    "SPLITS",
    "TASKS",
    "WorldEdit",
    "caption",
    "edit_name",
    "material_points",
    "render_edit",
    "render_pictures",
    "render_scenes",
]
