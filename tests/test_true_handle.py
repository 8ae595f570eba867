"""The true handle error, on every family and task of DragWorld, with the settings of conf/."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from gooddrag.composition import composer, instantiate
from gooddrag.metrics import SceneFit, TrueHandle
from gooddrag.metrics.true_handle import Search, TrueHandles
from gooddrag.world import FAMILIES, TASKS, WorldEdit, render_edit, render_scenes

PAIRS = [(family, task) for task in range(len(TASKS)) for family in range(len(FAMILIES))]
NAMES = [f"{FAMILIES[family]}-{TASKS[task]}" for family, task in PAIRS]
# a third of them, with every family and every task
SOME = PAIRS[::3]
SOME_NAMES = NAMES[::3]
CPU = torch.device("cpu")


@cache
def fit() -> SceneFit:
    with composer() as compose:
        metric = instantiate(compose("base", ["+metrics=true_handle"]).metrics)["true_handle"]
    assert isinstance(metric, TrueHandle)
    return metric.fit


@cache
def search_of(family: int, task: int) -> tuple[WorldEdit, Search]:
    world = render_edit("validation", 0, family + len(FAMILIES) * task)
    return world, Search(world, fit(), CPU)


def scene(search: Search, world: WorldEdit, way: float, *offsets: float) -> Tensor:
    """The picture part of the way from source to truth (0 to 1), with offsets in pixels."""
    place = search.way.places(torch.tensor([way * search.way.length]))
    place[0, 1 : 1 + len(offsets)] = torch.tensor(offsets) / search.size
    return render_scenes(world.family, search.way.parameters(place))[0]


def handles(search: Search, way: float, *offsets: float) -> Tensor:
    place = search.way.places(torch.tensor([way * search.way.length]))
    place[0, 1 : 1 + len(offsets)] = torch.tensor(offsets) / search.size
    return search.way.points(place)[0] * search.size


def blurred(picture: Tensor, sigma: float) -> Tensor:
    steps = torch.arange(-8, 9)
    kernel = torch.exp(-(steps**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    wide = functional.pad(picture[None], (8, 8, 8, 8), mode="replicate")
    rows = functional.conv2d(wide, kernel, groups=3)
    return functional.conv2d(rows, kernel.transpose(2, 3), groups=3)[0]


def compressed(picture: Tensor, quality: int) -> Tensor:
    pixels = (picture.permute(1, 2, 0) * 255).round().byte().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255


def noisy(picture: Tensor, sigma: float) -> Tensor:
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    return (picture + sigma * noise).clamp(0, 1)


def without_object(world: WorldEdit) -> Tensor:
    """What changes is filled from its surroundings."""
    outside = (world.mask == 0).float()
    known = torch.cat((world.source * outside, outside))[None]
    small = functional.avg_pool2d(functional.avg_pool2d(known, 4), 31, stride=1, padding=15)
    spread = functional.interpolate(small, outside.shape[1:], mode="bilinear")[0]
    return torch.where(outside > 0, world.source, spread[:3] / spread[3:].clamp(min=1e-6))


def pasted(world: WorldEdit, radius: int) -> Tensor:
    """Each moving handle's patch copied to its target."""
    picture = world.source.clone()
    for (px, py), (qx, qy) in zip(
        world.handles.int().tolist(), world.targets.int().tolist(), strict=True
    ):
        left, up = (min(radius, *pair) for pair in ((px, qx), (py, qy)))
        right, down = (min(radius, *(255 - v for v in pair)) for pair in ((px, qx), (py, qy)))
        patch = world.source[:, py - up : py + down + 1, px - left : px + right + 1]
        picture[:, qy - up : qy + down + 1, qx - left : qx + right + 1] = patch
    return picture


@pytest.mark.parametrize(("family", "task"), PAIRS, ids=NAMES)
class TestEveryEdit:
    def test_source_truth_and_half_way(self, family: int, task: int) -> None:
        world, search = search_of(family, task)
        source, truth = search(world.source), search(world.truth)
        half = search(scene(search, world, 0.5))
        moving = (world.handles != world.targets).any(dim=1)
        floored = (world.handles - world.targets)[moving].norm(dim=1).mean()
        # handles and targets of the sample are whole pixels, the scene's are not
        assert source.distance == pytest.approx(float(floored), abs=1.0)
        assert source.error == pytest.approx(source.distance, abs=0.5)
        # the last bit of what vanishes cannot be seen
        assert truth.error < 0.4 + 0.03 * source.distance * (world.task == "removal")
        assert (source.way, truth.way) == pytest.approx((0, 1), abs=0.03)
        middle = handles(search, 0.5) - handles(search, 1)
        assert half.error == pytest.approx(float(middle.norm(dim=1).mean()), abs=0.8)
        assert half.error == pytest.approx(0.5 * source.distance, rel=0.08)
        for found in (source, truth, half):
            assert found.found, found
            assert found.residual < 0.02
        torch.testing.assert_close(truth.handles.floor(), world.targets[moving], rtol=0, atol=1.0)


@pytest.mark.parametrize(("family", "task"), SOME, ids=SOME_NAMES)
class TestRobustness:
    def test_beside_the_way(self, family: int, task: int) -> None:
        """Offsets that no edit of DragWorld has, of every free parameter at once."""
        world, search = search_of(family, task)
        count = len(search.way.units)
        offsets = torch.linspace(-1, 1, count + 2)[1:-1].flip(0) if count else torch.zeros(0)
        offsets = (5 * offsets / offsets.norm().clamp(min=0.5)).tolist()
        found = search(scene(search, world, 0.6, *offsets))
        expected = handles(search, 0.6, *offsets)
        assert float((found.handles - expected).norm(dim=1).mean()) < 1.0
        assert found.found

    def test_worse_pictures(self, family: int, task: int) -> None:
        world, search = search_of(family, task)
        picture = scene(search, world, 0.7)
        exact = search(picture)
        for name, worse in {
            "noise": noisy(picture, 0.08),
            "blur": blurred(picture, 1.5),
            "JPEG": compressed(picture, 25),
            "darker": picture * 0.96 + 0.01,
        }.items():
            found = search(worse)
            assert found.error == pytest.approx(exact.error, abs=1.5), name
            assert found.found, name

    def test_no_object(self, family: int, task: int) -> None:
        """Fills of the region are not taken for the object; removed things may be just that."""
        world, search = search_of(family, task)
        found = search(without_object(world))
        assert found.residual > 2 * search(world.source).residual
        if world.task in ("relocation", "rotation"):
            assert not found.found, found

    def test_paste(self, family: int, task: int) -> None:
        """A patch that is smaller than its object does not move the object."""
        world, search = search_of(family, task)
        found, source = search(pasted(world, 4)), search(world.source)
        assert found.error > 0.75 * source.distance
        assert found.residual > source.residual


def test_a_vanished_object_is_not_found() -> None:
    """Over all that are moved or turned: hardly any fill looks like the object."""
    found = []
    for family in range(len(FAMILIES)):
        for task in (0, 1):
            world, search = search_of(family, task)
            found.append(search(without_object(world)).found)
    assert sum(found) <= 1


def test_half_the_object_is_in_the_residual() -> None:
    world, search = search_of(5, 0)
    ghost = search((world.source + world.truth) / 2)
    assert ghost.residual > 10 * search(world.source).residual


def test_gains_with_the_edit() -> None:
    """The error falls along the way, in even steps."""
    world, search = search_of(1, 1)
    errors = [search(scene(search, world, way)).error for way in (-0.1, 0.2, 0.4, 0.8, 1.1)]
    per_way = [errors[0] / 1.1, errors[1] / 0.8, errors[2] / 0.6, errors[3] / 0.2, errors[4] / 0.1]
    assert per_way == pytest.approx([search(world.source).distance] * 5, rel=0.1)


def test_sizes_and_devices_scale() -> None:
    small, large = (render_edit("validation", 0, 13, size=size) for size in (128, 256))
    errors = [Search(world, fit(), CPU)(world.source).error for world in (small, large)]
    assert errors[1] == pytest.approx(2 * errors[0], rel=0.02)


class TestMetric:
    def test_numbers(self) -> None:
        world, search = search_of(0, 0)
        metric = TrueHandle(fit=fit())
        row = {k: float(v) for k, v in metric(edited=world.truth, world=world).items()}
        expected: TrueHandles = search(world.truth)
        assert row == {
            "true_handle_error": pytest.approx(expected.error),
            "true_handle_found": 1,
            "true_handle_residual": pytest.approx(expected.residual),
            "true_handle_likeness": pytest.approx(expected.likeness),
        }

    def test_destroying_does_not_pay(self) -> None:
        world, search = search_of(6, 0)
        metric = TrueHandle(fit=fit())
        row = metric(edited=without_object(world), world=world)
        assert row["true_handle_found"] == 0
        assert float(row["true_handle_error"]) == pytest.approx(search(world.source).distance)

    def test_worlds_do_not_mix(self) -> None:
        metric = TrueHandle(fit=fit())
        for family in (0, 5, 0):
            world, search = search_of(family, 0)
            error = metric(edited=world.source, world=world)["true_handle_error"]
            assert float(error) == pytest.approx(search(world.source).error)

    def test_searches_of_the_last_worlds_are_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[str] = []

        class Counted(Search):
            def __init__(self, world: WorldEdit, *parts: Any) -> None:
                made.append(world.name)
                super().__init__(world, *parts)

        monkeypatch.setattr("gooddrag.metrics.true_handle.Search", Counted)
        monkeypatch.setattr("gooddrag.metrics.true_handle.KEPT", 2)
        metric, worlds = TrueHandle(fit=fit()), [render_edit("test", 0, i) for i in range(3)]
        numbers = [metric(world.source, world) for world in (*worlds[:2], *worlds)]
        assert numbers[:2] == numbers[2:4]
        assert made == [world.name for world in worlds]
        metric.update(worlds[0].source, worlds[0])
        assert made[3:] == [worlds[0].name]

    def test_sizes_must_agree(self) -> None:
        world, _ = search_of(0, 0)
        with pytest.raises(ValueError, match="one size"):
            TrueHandle(fit=fit()).update(world.source[:, :128, :128], world)
