"""All methods of conf/method: one interface, and the identities of each."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from gooddrag import cli, load_method
from gooddrag.backbones.stable_diffusion import StableDiffusion
from gooddrag.callbacks import DragVideo, EditWriter, ProgressBar
from gooddrag.callbacks.csv_logger import CsvEdit
from gooddrag.composition import composer
from gooddrag.events import PHASES, EditCallback
from gooddrag.methods import cycle_sde, fastdrag, freedrag, sde_drag
from gooddrag.methods.dragnoise import BottleneckOptimization
from gooddrag.methods.paste import paste
from gooddrag.types import DragSample, Edit, Trajectory
from tests.tiny import make_sample

NAMES = sorted(Path(entry.name).stem for entry in (files("gooddrag.conf") / "method").iterdir())
SMALL = {"K": 3, "B": 2, "J": 1, "steps": 6, "r": 1, "r1": 1, "r2": 2, "until": 2, "radius": 3}


def small(name: str) -> list[str]:
    """Few steps, as overrides: of the numbers that the method has."""
    with composer() as compose:
        own = compose("edit", [f"method={name}"]).method
    return [f"method.{key}={value}" for key, value in SMALL.items() if own.get(key) is not None]


def load(name: str, folder: Path, *overrides: str, dtype: str = "float64") -> Any:
    """A method on the tiny pipeline, without a LoRA."""
    backbone = ["backbone=folder", f"backbone.path={folder}", "backbone.device=cpu"]
    resolution = ["backbone.resolution=64", f"backbone.dtype={dtype}"]
    return load_method(name, [*backbone, *resolution, "adapt=none", *small(name), *overrides])


def samples() -> list[DragSample]:
    """One size; their numbers of pairs, their masks and how far they are dragged differ.

    No point is near a border, where cells of the grid are equal and rounding decides between them.
    """
    near = make_sample(seed=9, pairs=2)
    return [
        make_sample(seed=7, pairs=1),
        make_sample(seed=10, pairs=3, mask=False),
        replace(near, targets=near.handles + 5),
    ]


class Told(EditCallback):
    def __init__(self) -> None:
        self.order: list[str] = []
        self.totals: dict[str, int] = {}
        self.advances: dict[str, int] = {}

    def on_edit_start(self, samples: Any) -> None:
        self.order.append("start")

    def on_phase_start(self, phase: str, total: int) -> None:
        self.order.append(phase)
        self.totals[phase], self.advances[phase] = total, 0

    def on_phase_advance(self, phase: str, loss: torch.Tensor | None = None) -> None:
        assert self.order[-1] == phase
        self.advances[phase] += 1

    def on_phase_end(self, phase: str, seconds: float) -> None:
        assert self.order[-1] == phase

    def on_denoise_step(self, sample: int, step: int, preview: Any) -> None:
        assert preview().shape == (3, 64, 64)

    def on_edit_end(self, samples: Any, edits: Any) -> None:
        self.order.append("end")

    def on_edit_exception(self, samples: Any, error: BaseException) -> None:
        self.order.append(type(error).__name__)


@pytest.mark.parametrize("name", NAMES)
class TestInterface:
    def test_edits_come_in_order(self, tiny_folder: Path, name: str) -> None:
        batch = samples()
        before = [sample.image.clone() for sample in batch]
        edits = load(name, tiny_folder, dtype="float32")(batch)
        assert len(edits) == len(batch)
        for sample, image, edit in zip(batch, before, edits, strict=True):
            assert isinstance(edit, Edit)
            assert torch.equal(sample.image, image)  # the source is left alone
            assert (edit.image.shape, edit.image.device.type) == (image.shape, "cpu")
            assert torch.isfinite(edit.image).all()
            assert 0 <= edit.image.min() <= edit.image.max() <= 1
            assert edit.handles.shape == sample.handles.shape
            assert ((edit.handles >= 0) & (edit.handles <= 63)).all()
            assert edit.trajectory is None or isinstance(edit.trajectory, Trajectory)
            assert edit.peak_memory > 0

    def test_progress(self, tiny_folder: Path, name: str) -> None:
        told = Told()
        edit = load(name, tiny_folder, dtype="float32")([make_sample(seed=1)], callbacks=[told])[0]
        assert (told.order[0], told.order[-1]) == ("start", "end")
        assert set(told.order[1:-1]) == set(edit.seconds) <= set(PHASES)
        for phase, total in told.totals.items():
            assert 0 < told.advances[phase] <= total

    def test_files(self, tiny_folder: Path, tmp_path: Path, name: str) -> None:
        """The film, the tables and the record: whatever a method has not got is left out."""
        bar = ProgressBar(Console(file=(tmp_path / "log").open("w")))
        callbacks = [bar, DragVideo(tmp_path), EditWriter(tmp_path), CsvEdit(tmp_path)]
        edit = load(name, tiny_folder, dtype="float32")([make_sample(1)], callbacks=callbacks)[0]
        left = {path.stem for path in tmp_path.iterdir()}
        assert {"edited", "before_after", "drag", "metrics", "record"} <= left
        assert ("trajectory" in left) == (edit.trajectory is not None)
        record = json.loads((tmp_path / "record.json").read_text())
        assert record["status"] == "done"
        assert (record["operations"] is None) == (edit.trajectory is None)

    def test_failure_is_told(
        self, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        editor, told = load(name, tiny_folder), Told()

        def broken(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(editor, "_edit", broken)
        with pytest.raises(KeyboardInterrupt):
            editor([make_sample(1)], callbacks=[told])
        assert told.order == ["start", "KeyboardInterrupt"]

    def test_a_batch_is_its_samples(self, tiny_folder: Path, name: str) -> None:
        """In float64, since dragging is chaotic; the same edit again is the same to the bit."""
        editor, batch = load(name, tiny_folder), samples()
        together = editor(batch, seed=3)
        for sample, edit in zip(batch, together, strict=True):
            alone = editor([sample], seed=3)[0]
            torch.testing.assert_close(edit.image, alone.image, rtol=0, atol=1e-7)
            assert torch.equal(edit.handles, alone.handles)
        assert torch.equal(editor([batch[-1]], seed=3)[0].image, alone.image)

    def test_any_size(self, tiny_folder: Path, name: str) -> None:
        edit = load(name, tiny_folder, dtype="float32")([make_sample(seed=1, size=(61, 70))])[0]
        assert edit.image.shape == (3, 61, 70)

    @pytest.mark.slow
    def test_on_the_command_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """The embedded model, with the method's own LoRA where it has one."""
        monkeypatch.setenv("GOODDRAG_CACHE", str(tmp_path / "cache"))
        with composer() as compose:
            adapt = compose("edit", [f"method={name}"]).get("adapt") or {}
        few = [
            f"adapt.{key}={n}" for key, n in {"steps": 1, "batch_size": 1}.items() if key in adapt
        ]
        words = [f"method={name}", f"output={tmp_path}/out", "backbone.device=cpu", *few]
        monkeypatch.setattr("sys.argv", ["gooddrag", "edit", *words, *small(name)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
        assert (tmp_path / "out" / "edited.png").is_file()


def decoded_by(editor: Any, batch: list[DragSample]) -> torch.Tensor:
    """The edited latents before decoding."""
    kept, decode = [], editor.backbone.decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(editor.backbone, "decode", lambda z: kept.append(z) or decode(z))
        editor(batch)
    return kept[-1]


class TestIdentity:
    def test_every_bit(self, tiny_folder: Path) -> None:
        for sample, edit in zip(samples(), load("identity", tiny_folder)(samples()), strict=True):
            assert torch.equal(edit.image, sample.image)
            assert torch.equal(edit.handles, sample.handles)


class TestPaste:
    def test_patches_are_copied(self) -> None:
        image = torch.rand(3, 40, 50)
        p, q = torch.tensor([[10.0, 12.0]]), torch.tensor([[30.0, 25.0]])
        out = paste(image, p, q, radius=4)
        assert torch.equal(out[:, 21:30, 26:35], image[:, 8:17, 6:15])
        out[:, 21:30, 26:35] = image[:, 21:30, 26:35]
        assert torch.equal(out, image)  # and nothing else

    def test_borders_cut_both_patches(self) -> None:
        image = torch.rand(3, 40, 50)
        out = paste(image, torch.tensor([[1.0, 39.0]]), torch.tensor([[49.0, 20.0]]), radius=6)
        # one pixel to the left, none to the right; six above, none below
        assert torch.equal(out[:, 14:21, 48:50], image[:, 33:40, 0:2])
        assert int((out != image).any(dim=0).sum()) <= 14

    def test_all_is_read_from_the_source(self) -> None:
        image = torch.rand(3, 40, 50)
        a, b, c = ([10.0, 10.0], [20.0, 10.0], [30.0, 10.0])
        out = paste(image, torch.tensor([a, b]), torch.tensor([b, c]), radius=2)
        assert torch.equal(out[:, 8:13, 18:23], image[:, 8:13, 8:13])
        assert torch.equal(out[:, 8:13, 28:33], image[:, 8:13, 18:23])

    def test_negative_radius(self) -> None:
        with pytest.raises(ValueError, match="radius"):
            load_method("paste", ["method.radius=-1"])


class TestSDEDrag:
    levels = cycle_sde.Levels(torch.linspace(0.9999, 0.005, 1000), steps=20, strength=0.6)

    def test_levels(self) -> None:
        assert len(self.levels.t) == self.levels.count + 1 == 13
        assert self.levels.t[:3] == [50, 100, 150]
        for strength, steps in ((0.05, 20), (1.0, 20), (0.6, 0)):
            with pytest.raises(ValueError, match=r"method\.st"):
                replace(self.levels, strength=strength, steps=steps)

    def test_taken_back_noise_leads_back(self) -> None:
        """x_{t-s} = m(x_t, eps) + sigma w, whatever the model says."""
        x, eps, x_prev = torch.randn(3, 2, 4, 8, 8, dtype=torch.float64)
        for k in range(self.levels.count):
            alphas = self.levels.down(k)
            w = cycle_sde.step_noise(x, eps, x_prev, *alphas)
            found = cycle_sde.step_mean(x, eps, *alphas) + cycle_sde.sigma(*alphas) * w
            torch.testing.assert_close(found, x_prev)

    def test_noise_has_the_level_s_variance(self) -> None:
        """Steps up compose: sqrt(a) x + sqrt(1 - a) noise with a the product."""
        a, b, c = (torch.tensor(value) for value in (0.9, 0.6, 0.3))
        one = torch.ones(1, 1, 1, 1)
        kept = cycle_sde.perturb(cycle_sde.perturb(one, 0 * one, a, b), 0 * one, b, c)
        torch.testing.assert_close(kept, cycle_sde.perturb(one, 0 * one, a, c))
        mean = cycle_sde.perturb(one, 0 * one, a, c)
        spread = cycle_sde.perturb(one, one, a, c) - mean
        torch.testing.assert_close(mean**2 + spread**2, one)

    def test_a_step_down_keeps_the_level_s_variance(self) -> None:
        """With the true eps of z_0 = 0, m and sigma give variance 1 - a_{t-s}."""
        a_from, a_to = self.levels.down(5)
        eps = torch.ones(1, 1, 1, 1)
        mean = cycle_sde.step_mean(torch.sqrt(1 - a_from) * eps, eps, a_from, a_to)
        total = mean**2 + cycle_sde.sigma(a_from, a_to) ** 2
        torch.testing.assert_close(total.squeeze(), 1 - a_to)

    def test_no_move_gives_the_picture_back(self, tiny_folder: Path) -> None:
        """Targets in the handles' own cells, alpha = 1: z_0 as it was drawn, beyond rounding."""
        editor = load("sde_drag", tiny_folder, "method.alpha=1.0")
        sample = make_sample(seed=1, mask=False)
        still = replace(sample, targets=(sample.handles // 8) * 8 + 7 - sample.handles % 8)
        z_0 = decoded_by(editor, [still])
        mean, std = editor._posterior([still], editor._canvas([still]))
        drawn = mean + std * editor._draw(still, 0)((1, *mean.shape[1:])).to(mean)
        torch.testing.assert_close(z_0, drawn, rtol=0, atol=1e-9)

    def test_frozen_cells_are_kept_to_the_bit(self, tiny_folder: Path) -> None:
        editor, sample = load("sde_drag", tiny_folder), make_sample(seed=1)
        z_0 = decoded_by(editor, [sample])
        canvas = editor._canvas([sample])
        mean, std = editor._posterior([sample], canvas)
        drawn = mean + std * editor._draw(sample, 0)((1, *mean.shape[1:])).to(mean)
        free = sde_drag.shrunk_mask(editor._masks([sample], canvas), z_0.shape[-2:])
        assert 0 < free.float().mean() < 1
        frozen = ~free.expand_as(z_0)
        assert torch.equal(z_0[frozen], drawn[frozen])
        assert not torch.equal(z_0, drawn)

    def test_numbers_belong_to_seed_and_sample(self, tiny_folder: Path) -> None:
        editor, sample = load("sde_drag", tiny_folder), make_sample(seed=1)
        one, other = (editor([sample], seed=seed)[0].image for seed in (0, 1))
        renamed = editor([replace(sample, name="another")], seed=0)[0].image
        assert not torch.equal(one, other)
        assert not torch.equal(one, renamed)

    @pytest.mark.parametrize("target", [[9, 4], [10, 4], [12, 2], [40, -3], [0, 19]])
    def test_moves_are_a_way(self, target: list[int]) -> None:
        source, target = torch.tensor([[9, 4], [5, 5]]), torch.tensor([target, [6, 6]])
        found = sde_drag.moves(source, target, step_size=2.0)
        assert torch.equal(found[0][0], source)
        assert torch.equal(found[-1][1], target)
        for (_, end), (start, _) in pairwise(found):
            assert torch.equal(end, start)
        longest = float((target - source).double().norm(dim=1).max())
        assert abs(longest / len(found) - 2) <= 1 or len(found) == 1

    def test_pasting(self) -> None:
        x = torch.arange(64.0).view(1, 8, 8)
        source, target = torch.tensor([[2, 3]]), torch.tensor([[5, 3]])
        out = sde_drag.copy_and_paste(x, source, target, torch.zeros, r=1, alpha=2.0, beta=0.5)
        assert torch.equal(out[0, 2:4, 4:6], 2 * x[0, 2:4, 1:3])
        assert torch.equal(out[0, 2:4, 1:3], 0.5 * x[0, 2:4, 1:3])
        out[0, 2:4, 1:6] = x[0, 2:4, 1:6]
        assert torch.equal(out, x)

    def test_scales(self) -> None:
        count = 120
        assert sde_drag.guidance_scale(-1, count, 3.0) == 1
        assert sde_drag.guidance_scale(count - 2, count, 3.0) == 3
        assert sde_drag.lora_scale(-1, count, 0.5) == 1
        assert sde_drag.lora_scale(count - 2, count, 0.5) == 0.5

    def test_scaled_adapters(self) -> None:
        one = {"m.lora_A.weight": torch.rand(2, 3), "m.lora_B.weight": torch.rand(4, 2)}
        other = {key: weight + 1 for key, weight in one.items()}
        found = sde_drag.scaled([one, one, other], 0.25)
        assert found is not None
        assert found[0] is found[1]
        for adapter, made in ((one, found[0]), (other, found[2])):
            product = adapter["m.lora_B.weight"] @ adapter["m.lora_A.weight"]
            assert torch.allclose(made["m.lora_B.weight"] @ made["m.lora_A.weight"], product / 4)
        assert sde_drag.scaled(None, 0.25) is None


class TestFastDrag:
    region = torch.zeros(12, 12, dtype=torch.bool)
    region[1:11, 2:10] = True
    cells = region.nonzero().double()

    def test_stretch(self) -> None:
        """1 at the handle, 0 on the circle, linear on the ray between."""
        centre, radius = torch.tensor([5.0, 5.0]).double(), torch.tensor(4.0).double()
        handle = torch.tensor([5.0, 3.0]).double()
        on_ray = torch.stack([handle + torch.tensor([0.0, x]) for x in (0, 1.5, 3, 6, 7)])
        found = fastdrag.stretch(on_ray, handle, centre, radius)
        expected = torch.tensor([1, 0.75, 0.5, 0, 0]).double()
        torch.testing.assert_close(found, expected)

    def test_handles_go_where_they_are_dragged(self) -> None:
        handles = torch.tensor([[3.0, 4.0], [8.0, 7.0]]).double()
        targets = torch.tensor([[5.0, 4.0], [8.0, 8.0]]).double()
        circle = fastdrag.circle_round(self.region, handles)
        v = fastdrag.displacements(handles, handles, targets, *circle)
        torch.testing.assert_close(v, targets - handles, rtol=0, atol=1e-5)

    def test_a_handle_outside_the_region(self) -> None:
        handles = torch.tensor([[0.0, 0.0]]).double()
        circle = fastdrag.circle_round(self.region, handles)
        v = fastdrag.displacements(self.cells, handles, handles + 2, *circle)
        assert torch.isfinite(v).all()
        assert (v.norm(dim=1) <= math.sqrt(8) + 1e-9).all()

    def test_nothing_dragged_is_nothing_changed(self) -> None:
        z, mask = torch.rand(4, 12, 12).double(), self.region[None].double()
        handles = torch.tensor([[3.0, 4.0], [8.0, 7.0]]).double()
        assert torch.equal(fastdrag.warp(z, mask, handles, handles), z)
        assert torch.equal(fastdrag.warp(z, 0 * mask, handles, handles + 2), z)

    def test_frozen_cells_are_kept(self) -> None:
        z, mask = torch.rand(4, 12, 12).double(), self.region[None].double()
        out = fastdrag.warp(z, mask, torch.tensor([[3.0, 4.0]]), torch.tensor([[6.0, 7.0]]))
        assert torch.equal(out[:, ~self.region], z[:, ~self.region])
        assert torch.equal(out[:, 6, 7], z[:, 3, 4])

    def test_the_one_that_goes_farther_wins(self) -> None:
        z = torch.arange(144.0).view(1, 12, 12)
        cells = torch.tensor([[3.0, 3.0], [3.0, 5.0]])
        v = torch.tensor([[0.0, 3.0], [0.0, 1.0]])
        for order in ([0, 1], [1, 0]):
            moved, empty = fastdrag.relocate(z, self.region, cells[order], v[order])
            assert moved[0, 3, 6] == z[0, 3, 3]
            assert not empty[3, 6]
            assert empty[3, 3]

    def test_empty_cells_are_filled(self) -> None:
        z = torch.zeros(1, 5, 7)
        z[0, 2] = torch.tensor([1.0, -9, -9, -9, 5, 5, 5])
        z[0, 0, :], z[0, 4, :] = 3.0, 3.0
        empty = torch.zeros(5, 7, dtype=torch.bool)
        empty[2, 1:4] = True
        out = fastdrag.fill(z, empty)
        assert torch.equal(out[:, ~empty], z[:, ~empty])
        # left 1 at 1, right 5 at 3, above and below 0 at 1
        assert float(out[0, 2, 1]) == pytest.approx((1 + 5 / 3) / (1 + 1 / 3 + 1 + 1))

    def test_a_lonely_cell_keeps_its_value(self) -> None:
        z, empty = torch.rand(2, 3, 3), torch.ones(3, 3, dtype=torch.bool)
        assert torch.equal(fastdrag.fill(z, empty), z)


class TestFreeDrag:
    search = freedrag.LineSearch(expected=0.5, d=4.0, places=4, steps=5)

    def test_update_weight(self) -> None:
        expected = torch.tensor([1.0, 2.0, 0.1])
        for share, weight in (freedrag.WELL_LEARNT, freedrag.ILL_LEARNT):
            torch.testing.assert_close(
                freedrag.update_weight(share * expected, expected),
                torch.full_like(expected, weight),
            )

    def test_line_search(self) -> None:
        """The difference grows by 1 a cell here, so that the place is known."""
        start, end = torch.zeros(3), torch.full((3,), 4.0)
        found = self.search.best(start, end, lambda gone: gone, torch.tensor([0.0, 2.2, 9.0]))
        assert found.tolist() == [1, 2, 4]

    def test_templates_and_positions(self, tiny_folder: Path) -> None:
        """Handles stay on their lines and never pass their targets; sub-motions are short."""
        sample = make_sample(seed=1, pairs=2)
        trajectory = load("freedrag", tiny_folder, "method.K=12")([sample])[0].trajectory
        assert trajectory is not None
        steps = [t.gradient_steps for t in trajectory.trackings]
        assert steps[0] == 0
        assert all(0 < b - a <= 5 for a, b in pairwise(steps))
        start, goal = trajectory.start, (sample.targets / 2).round() * 2
        way = goal - start
        for tracking in trajectory.trackings:
            gone = tracking.handles - start
            share = (gone * way).sum(dim=1) / way.square().sum(dim=1)
            assert ((share >= -1e-5) & (share <= 1 + 1e-5)).all()
            torch.testing.assert_close(gone, share[:, None] * way, rtol=0, atol=1e-3)
        assert (trajectory.trackings[0].handles != start).any()

    def test_arrival_takes_learning(self, tiny_folder: Path) -> None:
        """At the target from the first line search on; that is not the end."""
        sample = make_sample(seed=7, pairs=1)
        near = replace(sample, targets=sample.handles + torch.tensor([4.0, 0.0]))
        editor = load("freedrag", tiny_folder, "method.d=100.0", "method.expected=100.0")
        trajectory = editor([near])[0].trajectory
        first, last = trajectory.trackings[0], trajectory.trackings[-1]
        torch.testing.assert_close(first.handles, near.targets, atol=2, rtol=0)
        assert trajectory.operations
        assert torch.equal(first.handles, last.handles)

    def test_nobody_goes_beyond_the_target(self, tiny_folder: Path) -> None:
        """However often the line is searched from there."""
        sample = make_sample(seed=7, pairs=1)
        near = replace(sample, targets=sample.handles + torch.tensor([3.0, 4.0]))
        words = ["method.K=40", "method.submotion=1", "method.on_arrival=never", "method.steps=3"]
        trajectory = load("freedrag", tiny_folder, *words)([near])[0].trajectory
        assert len(trajectory.trackings) == 40
        goal = (near.targets / 2).round() * 2
        assert max(float((t.handles - goal).norm(dim=1).max()) for t in trajectory.trackings) < 6

    def test_settings_out_of_range(self) -> None:
        for change in ({"expected": 0.0}, {"d": -1.0}, {"places": 0}, {"steps": 0}):
            with pytest.raises(ValueError, match=next(iter(change))):
                replace(self.search, **change)


class TestDragNoise:
    def inputs(self, backbone: StableDiffusion) -> tuple[torch.Tensor, int, torch.Tensor]:
        return torch.randn(2, 4, 8, 8, dtype=torch.float64), 301, backbone.embed(["", ""])

    def test_its_own_bottleneck_changes_nothing(self, backbone64: StableDiffusion) -> None:
        z, t, text = self.inputs(backbone64)
        s = backbone64.bottleneck(z, t, text)
        expected = backbone64.noise_and_features(z, t, text)
        with backbone64.replaced_bottleneck(s):
            found = backbone64.noise_and_features(z, t, text)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    def test_chosen_latents(self, backbone64: StableDiffusion) -> None:
        z, t, text = self.inputs(backbone64)
        s = backbone64.bottleneck(z, t, text)
        expected = backbone64.noise(z, t, text)
        with backbone64.replaced_bottleneck(s[1:] + 1, slice(1, None, 2)):
            found = backbone64.noise(z, t, text)
        assert torch.equal(found[0], expected[0])
        assert not torch.equal(found[1], expected[1])
        assert torch.equal(backbone64.noise(z, t, text), expected)  # and afterwards no more

    def test_gradients_reach_it(self, backbone64: StableDiffusion) -> None:
        z, t, text = self.inputs(backbone64)
        s = backbone64.bottleneck(z, t, text).requires_grad_()
        with backbone64.replaced_bottleneck(s):
            eps, features = backbone64.noise_and_features(z, t, text)
        for out in (eps, features):
            gradient = torch.autograd.grad(out.square().sum(), s, retain_graph=True)[0]
            assert gradient.abs().sum() > 0

    def test_the_latent_is_left_alone(
        self, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only s_t is optimised; and at the first step the mask term is 0 to the bit."""
        editor = load("dragnoise", tiny_folder, dtype="float32")
        seen: list[BottleneckOptimization] = []

        class Watch(EditCallback):
            def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
                assert torch.equal(pl_module.z, pl_module.unedited)
                assert pl_module.z.grad is None
                seen.append(pl_module)

        edit = editor([make_sample(seed=1)], callbacks=[Watch()])[0]
        assert isinstance(seen[0], BottleneckOptimization)
        assert edit.trajectory is not None
        first, second = edit.trajectory.operations[:2]
        assert first.losses == first.drag_losses
        assert second.losses != second.drag_losses

    def test_propagation_ends(self, tiny_folder: Path) -> None:
        sample = make_sample(seed=1)
        with_it, without, undragged = (
            load("dragnoise", tiny_folder, f"method.until={n}", f"method.lr={lr}")([sample])[
                0
            ].image
            for n, lr in ((0, 0.02), (99, 0.02), (99, 1e-9))
        )
        assert not torch.equal(with_it, without)
        # with no propagation the latent is denoised as it was
        torch.testing.assert_close(without, undragged, rtol=0, atol=1e-12)

    def test_the_loss_falls(self, tiny_folder: Path) -> None:
        """Against a reference that stays what it is."""
        words = ["supervision=information_preserving", "method.K=12", "method.lr=0.3"]
        edit = load("dragnoise", tiny_folder, *words, "method.lam=0.0")([make_sample(seed=7)])[0]
        losses = [o.losses[0] for o in edit.trajectory.operations]
        assert min(losses[6:]) < 0.98 * losses[0]

    def test_one_step_only(self, tiny_folder: Path) -> None:
        with pytest.raises(ValueError, match="drag_first"):
            load("dragnoise", tiny_folder, "schedule=aldd", "+method.B=2")
