"""Tests of DragWorld: determinism, valid edits, and that material points truly move."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gooddrag.world import (
    FAMILIES,
    SPLITS,
    TASKS,
    WorldEdit,
    caption,
    render_edit,
    render_pictures,
)
from gooddrag.world.families import REGISTRY
from gooddrag.world.scene import _scenes, family_of, task_of

SIZE = 128
TOLERANCE = 2.5 / 255
EVERY_PAIR = [(family, task) for family in range(len(FAMILIES)) for task in range(len(TASKS))]


def index_of(family: int, task: int, repeat: int = 0) -> int:
    """Returns the index of a scene of a family with an edit of a task."""
    count = len(FAMILIES)
    return family + count * (task + len(TASKS) * repeat)


@cache
def edit_of(family: int, task: int) -> WorldEdit:
    """Renders one edit of a family and task, once for all tests."""
    return render_edit("test", 0, index_of(family, task), size=SIZE)


def patch(picture: Tensor, point: Tensor, radius: int = 2) -> Tensor:
    """Cuts a square around a pixel; the picture is extended at its borders."""
    padded = torch.nn.functional.pad(picture[None], [radius] * 4, mode="replicate")[0]
    x, y = int(point[0]), int(point[1])
    return padded[:, y : y + 2 * radius + 1, x : x + 2 * radius + 1]


def test_every_family_has_every_task() -> None:
    assert len(FAMILIES) >= 8
    for family in REGISTRY:
        assert {edit.task for edit in family.edits} == set(TASKS)
        assert caption(family.name).startswith("an illustration of")


def test_indices_cover_all_pairs_evenly() -> None:
    indices = range(len(FAMILIES) * len(TASKS))
    pairs = {(family_of(index), task_of(index)) for index in indices}
    assert pairs == set(EVERY_PAIR)


def test_pictures_do_not_depend_on_the_batch() -> None:
    indices = [*list(range(len(FAMILIES))), len(FAMILIES), 3 * len(FAMILIES)]
    together, families = render_pictures("train", 1, indices, size=64)
    assert together.shape == (len(indices), 3, 64, 64)
    assert families.tolist() == [family_of(index) for index in indices]
    assert together.min() >= 0
    assert together.max() <= 1
    for row, index in list(enumerate(indices))[::3]:
        alone, _ = render_pictures("train", 1, torch.tensor([index]), size=64)
        assert torch.allclose(alone[0], together[row], atol=1e-5)


def test_splits_and_seeds_differ() -> None:
    pictures = [render_pictures(split, 0, [0], size=32)[0] for split in SPLITS]
    pictures.append(render_pictures("train", 1, [0], size=32)[0])
    for first in range(4):
        for second in range(first):
            assert (pictures[first] - pictures[second]).abs().max() > 0.05
    with pytest.raises(ValueError, match="split"):
        render_pictures("holdout", 0, [0], size=32)


def test_half_of_the_pictures_are_edited() -> None:
    family = 1
    seen = set()
    for repeat in range(6):
        index = index_of(family, TASKS.index("creation"), repeat)
        edit = render_edit("train", 0, index, size=32)
        picture = render_pictures("train", 0, [index], size=32)[0][0]
        is_source = torch.allclose(picture, edit.source, atol=1e-5)
        is_truth = torch.allclose(picture, edit.truth, atol=1e-5)
        assert is_source != is_truth
        seen.add(is_source)
    assert seen == {True, False}


@pytest.mark.parametrize(("family", "task"), EVERY_PAIR)
def test_edit_is_valid(family: int, task: int) -> None:
    edit = edit_of(family, task)
    assert edit.family == FAMILIES[family]
    assert edit.task == TASKS[task]
    assert edit.name == f"test_0_{index_of(family, task):05d}_{edit.family}"
    assert edit.source.shape == edit.truth.shape == (3, SIZE, SIZE)
    assert edit.mask.shape == (1, SIZE, SIZE)
    for picture in (edit.source, edit.truth):
        assert torch.isfinite(picture).all()
        assert picture.min() >= 0
        assert picture.max() <= 1
    assert set(edit.mask.unique().tolist()) <= {0.0, 1.0}
    assert 0.01 < edit.mask.mean() < 0.95
    difference = (edit.source - edit.truth).abs().amax(dim=0)
    assert difference.max() > 0.1
    assert difference[edit.mask[0] == 0].max() <= TOLERANCE
    assert edit.parameters.keys() == edit.edited_parameters.keys()
    assert edit.parameters != edit.edited_parameters


@pytest.mark.parametrize(("family", "task"), EVERY_PAIR)
def test_points_are_valid(family: int, task: int) -> None:
    edit = edit_of(family, task)
    assert edit.handles.shape == edit.targets.shape
    assert 1 <= len(edit.handles) <= 8
    for points in (edit.handles, edit.targets):
        assert points.dtype == torch.float32
        assert torch.equal(points, points.round())
        assert points.min() >= 0
        assert points.max() <= SIZE - 1
        assert edit.mask[0, points[:, 1].long(), points[:, 0].long()].all()
    assert (edit.handles != edit.targets).any()


@pytest.mark.parametrize("family", REGISTRY, ids=FAMILIES)
def test_every_edit_stays_in_range(family) -> None:
    """Checks the geometry of many scenes without rendering them."""
    uniform = torch.rand(500, 64, generator=torch.Generator().manual_seed(7))
    for number, edit in enumerate(family.edits):
        before, after = _scenes(family, uniform, torch.full((500,), number))
        start, end = family.points(before), family.points(after)
        for name in edit.handles + edit.pins:
            first, second = torch.stack(start[name]), torch.stack(end[name])
            assert min(first.min(), second.min()) > 0.004, name
            assert max(first.max(), second.max()) < 0.996, name
            pixels = (first - second).norm(dim=0) * 256
            if name in edit.pins:
                assert pixels.max() < 1.5, name
            else:
                assert 8 < pixels.min() <= pixels.max() < 60, name


def test_pins_occur() -> None:
    pinned = [
        (edit_of(family, task).handles == edit_of(family, task).targets).all(dim=1).any()
        for family, task in EVERY_PAIR
    ]
    assert sum(map(bool, pinned)) > len(EVERY_PAIR) / 2


@pytest.mark.parametrize("family", range(len(FAMILIES)), ids=FAMILIES)
def test_material_points_arrive_at_their_targets(family: int) -> None:
    edit = edit_of(family, TASKS.index("relocation"))
    arrived, stayed = [], []
    for handle, target in zip(edit.handles, edit.targets, strict=True):
        if torch.equal(handle, target):
            continue
        before = patch(edit.source, handle)
        arrived.append((before - patch(edit.truth, target)).abs().mean())
        stayed.append((before - patch(edit.source, target)).abs().mean())
    assert torch.stack(arrived).mean() < 0.09
    assert torch.stack(arrived).mean() < 0.6 * torch.stack(stayed).mean()


def test_size_scales_the_points() -> None:
    small = render_edit("test", 0, 4, size=64)
    large = render_edit("test", 0, 4, size=128)
    assert (large.handles - 2 * small.handles).abs().max() <= 1
    assert (large.targets - 2 * small.targets).abs().max() <= 1
    pooled = torch.nn.functional.avg_pool2d(large.source[None], 2)[0]
    assert (pooled - small.source).abs().mean() < 0.01


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="this CPU has only one way"
)
def test_an_edit_is_the_same_on_another_kind_of_cpu(tmp_path: Path) -> None:
    """A run is resumed elsewhere only if its samples are the same there, to the bit."""
    indices = [9, 19, 11, 21, 13, 32, 6, 25, 35]  # every family and task
    program = (
        "import sys, torch\n"
        "from gooddrag.world import render_edit\n"
        f"edits = [render_edit('test', 0, index, size={SIZE}) for index in {indices}]\n"
        "values = [(e.source, e.truth, e.mask, e.handles, e.targets) for e in edits]\n"
        "torch.save(values, sys.argv[1])\n"
    )
    plainer = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    subprocess.run([sys.executable, "-c", program, tmp_path / "e.pt"], env=plainer, check=True)
    for index, there in zip(indices, torch.load(tmp_path / "e.pt"), strict=True):
        here = render_edit("test", 0, index, size=SIZE)
        parts = (here.source, here.truth, here.mask, here.handles, here.targets)
        assert all(map(torch.equal, parts, there)), here.name
        assert all(part.dtype == torch.float32 for part in parts)
