"""Figures, and the maps of what tracking saw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from gooddrag.backbones.stable_diffusion import StableDiffusion
from gooddrag.callbacks import DistanceMaps
from gooddrag.drawing import before_after, side_by_side
from gooddrag.geometry import Canvas
from gooddrag.plots import distances, feature_distances, losses, pictures
from gooddrag.schedule import aldd
from gooddrag.tracking import PointTracking, distance_maps, track
from gooddrag.types import DragOperation, Edit, Tracking, Trajectory
from tests.test_drag import make_editor
from tests.tiny import make_sample


def way_of(steps: int = 4) -> Trajectory:
    """A handle that walks to the right by 10 pixels a step, and a pin."""
    start = torch.tensor([[10.0, 60.0], [80.0, 20.0]])
    way = Trajectory(start)
    for k in range(1, steps + 1):
        handles = start + torch.tensor([[10.0 * k, 0.0], [0.0, 0.0]])
        t = 700 - 20 * (k // 3)
        way.trackings.append(Tracking(k // 3, t, 2, handles, handles.flip(1) / 2))
        way.operations.append(DragOperation(0, k // 3, t, k, (5.0, 4.0), (4.0, 3.0), handles))
    return way


TARGETS = torch.tensor([[50.0, 60.0], [80.0, 20.0]])


def colours(picture: Image.Image) -> set[tuple[int, ...]]:
    return {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}


class TestMaps:
    @pytest.mark.parametrize("size", [(64, 48), (61, 47)])
    def test_least_in_the_window_is_what_tracking_finds(self, size: tuple[int, int]) -> None:
        canvas = Canvas.of(size, 8, "pad")
        draws = torch.Generator().manual_seed(0)
        features = torch.randn(2, 5, 8, 6, generator=draws, dtype=torch.float64)
        reference = torch.randn(3, 5, generator=draws, dtype=torch.float64)
        sample, radius = torch.tensor([0, 0, 1]), 4
        handles = torch.tensor([[0.0, 0.0], [14.0, 12.0], [29.0, 22.0]])
        maps = distance_maps(features, reference, sample, canvas)
        assert maps.shape == (3, *canvas.inside)
        found = track(features, reference, sample, handles, radius, canvas)
        for field, (y, x), here in zip(maps, handles.int().tolist(), found, strict=True):
            top, left = max(0, y - radius), max(0, x - radius)
            window = field[top : y + radius + 1, left : x + radius + 1]
            row, column = divmod(int(window.argmin()), window.shape[1])
            assert here.tolist() == [top + row, left + column]

    @pytest.mark.parametrize("when", ["stale", "fresh", "before"])
    def test_of_an_edit_each_tracking_has_its_map(
        self, backbone: StableDiffusion, when: str
    ) -> None:
        tracking = PointTracking(r2=3, when=when, on_entry=when == "stale")
        editor = make_editor(backbone, aldd(K=4, B=2), tracking=tracking)
        samples, seen = [make_sample(seed=3), make_sample(seed=4, pairs=1)], DistanceMaps()
        edits = editor(samples, callbacks=[seen])
        for edit, maps in zip(edits, seen.maps, strict=True):
            way = edit.trajectory
            assert len(maps) == len(way.trackings) > 0
            before = Canvas((64, 64), (64, 64)).to_grid(way.start, "nearest")
            for found, fields in zip(way.trackings, maps, strict=True):
                for field, here, there in zip(fields, before.int(), found.grid.int(), strict=True):
                    near = torch.full_like(field, torch.inf)
                    top, left = (here - 3).clamp(min=0).tolist()
                    window = slice(top, int(here[0]) + 4), slice(left, int(here[1]) + 4)
                    near[window] = field[window]
                    assert list(divmod(int(near.argmin()), field.shape[1])) == there.tolist()
                before = found.grid

    def test_listening_changes_nothing(self, backbone: StableDiffusion) -> None:
        editor, sample = make_editor(backbone, aldd(K=2, B=1)), make_sample(seed=3)
        alone, heard = editor([sample])[0], editor([sample], callbacks=[DistanceMaps()])[0]
        assert torch.equal(alone.image, heard.image)
        assert editor.tracking == PointTracking(r2=3, when="stale", on_entry=True)

    def test_first_map_is_zero_at_the_handle(self, backbone: StableDiffusion) -> None:
        seen = DistanceMaps()
        make_editor(backbone, aldd(K=1, B=1))([make_sample(seed=3)], callbacks=[seen])
        first = seen.maps[0][0]
        assert first.amin(dim=(1, 2)).max() < 1e-4 * first.amax()


class TestPictures:
    def test_each_is_where_its_name_says(self) -> None:
        shades = {name: torch.full((3, 20, 30), value / 4) for value, name in enumerate("abcd")}
        sheet = np.asarray(pictures(shades, columns=3))
        one = side_by_side({"a": shades["a"]})
        height, width = one.shape[1:]
        assert sheet.shape == (2 * height, 3 * 30 + 2 * 4, 3)
        for i, value in enumerate((0, 64, 128, 191)):
            row, column = divmod(i, 3)
            y, x = (row + 1) * height - 10, column * 34 + 15
            assert (sheet[y, x] == value).all()
        assert (sheet[height:, 30:] == 255).all()
        assert width == 30

    def test_before_after_is_side_by_side(self) -> None:
        sample = make_sample(pairs=1)
        edit = Edit(sample.image, sample.targets, None, {}, 0)
        height, width = before_after(sample, edit).shape[1:]
        assert (height, width) == (64 + 18, 2 * 64 + 4)


class TestCurves:
    def test_every_gradient_step_is_drawn(self) -> None:
        assert losses(way_of()).size == losses(Trajectory(torch.zeros(1, 2))).size
        assert losses(way_of(2)) != losses(way_of(4))

    def test_distances_of_several_ways(self) -> None:
        one = distances({"one": way_of()}, TARGETS)
        two = distances({"one": way_of(), "two": way_of(2)}, TARGETS)
        assert len(colours(one)) < len(colours(two))

    def test_what_tracking_saw(self) -> None:
        way = way_of()
        maps = [torch.rand(2, 40, 50) for _ in way.trackings]
        wide = feature_distances(maps, way, TARGETS, radius=6, count=4)
        narrow = feature_distances(maps, way, TARGETS, radius=6, handle=1, count=2)
        assert wide.width > 1.5 * narrow.width
        assert {(232, 44, 44), (38, 104, 240)} <= colours(wide)

    @pytest.mark.parametrize("count", [0, 3])
    def test_a_map_for_each_tracking(self, count: int) -> None:
        maps = [torch.rand(2, 40, 50)] * count
        with pytest.raises(ValueError, match=f"found {count} maps and 4 trackings"):
            feature_distances(maps, way_of(), TARGETS, radius=6)
