"""The families of scenes, in the order of their numbers."""

from gooddrag.world.families import (
    bunny,
    cat,
    face,
    fish,
    flowers,
    fruits,
    mountains,
    room,
    sailboat,
)

REGISTRY = (
    bunny.FAMILY,
    cat.FAMILY,
    face.FAMILY,
    fish.FAMILY,
    flowers.FAMILY,
    fruits.FAMILY,
    mountains.FAMILY,
    room.FAMILY,
    sailboat.FAMILY,
)
