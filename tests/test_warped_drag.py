"""gooddrag_plus: how likely a picture is, what is held until when, and whole edits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gooddrag.backbones.embedded import mini
from gooddrag.backbones.stable_diffusion import StableDiffusion
from gooddrag.ddim import Timesteps, predict_z0
from gooddrag.denoising import MutualAttention
from gooddrag.methods.held import HeldDenoising, beside_first, noised, soft_inside, surprise
from gooddrag.methods.warped_drag import WarpedDrag
from gooddrag.types import DragSample
from gooddrag.world import render_edit
from tests import tiny
from tests.test_methods import load
from tests.tiny import make_sample

NEVER = MutualAttention(when="never", start_layer=10, start_step=0)


def editor(folder: Path, *overrides: str) -> WarpedDrag:
    made = load("gooddrag_plus", folder, *overrides)
    assert isinstance(made, WarpedDrag)
    return made


def started(made: WarpedDrag, batch: list[DragSample]) -> HeldDenoising:
    """What an edit begins with."""
    text = made.backbone.embed([sample.prompt for sample in batch])
    return made._start(batch, 0, text, made._canvas(batch))


def held_denoising(backbone: StableDiffusion, **parts: Any) -> HeldDenoising:
    """Of two samples, 10 steps."""
    source, warped, eps = torch.randn(3, 2, 4, 8, 8, dtype=torch.float64)
    everything = torch.ones(2, 1, 8, 8)
    given = {"mask": everything, "until": 0 * everything, "likely": torch.tensor([True, False])}
    return HeldDenoising(
        backbone=backbone,
        text=backbone.embed(["", ""]),
        times=Timesteps(backbone.alphas_cumprod, 10, 1.0),
        attention=NEVER,
        source=source,
        warped=warped,
        eps=eps,
        **(given | parts),
    )


class TestSurprise:
    def test_it_is_the_error_of_the_predicted_noise(self, backbone64: StableDiffusion) -> None:
        z_0, eps = torch.randn(2, 3, 4, 8, 8).double(), torch.randn(2, 2, 4, 8, 8).double()
        text, times = backbone64.embed(["", "a cat"]), Timesteps(backbone64.alphas_cumprod, 10, 1.0)
        found = surprise(backbone64, z_0, eps, text, times, [100, 500])
        alone = 0
        for i, t in enumerate((100, 500)):
            z_t = noised(z_0[1, 2:], eps[1:, i], times.alpha(t))
            error = backbone64.noise(z_t, t, text[1:]).detach() - eps[1:, i]
            alone = alone + error[0].square().sum(dim=0)
        torch.testing.assert_close(found[1, 2], alone)

    def test_a_picture_is_likelier_than_what_is_none(self) -> None:
        """The built-in model: a picture of its world, the same in strips out of order, noise."""
        backbone = tiny.load(mini())
        picture = render_edit("validation", 0, 0).source[None]
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(16, generator=generator)
        torn = picture.unflatten(-1, (16, 16))[..., order, :].flatten(-2)
        noise = torch.rand(picture.shape, generator=generator)
        z_0 = backbone.encode(torch.cat((picture, torn, noise)))[0][None]
        eps = torch.randn(1, 1, *z_0.shape[2:], generator=generator)
        times = Timesteps(backbone.alphas_cumprod, 25, 0.6)
        losses = surprise(backbone, z_0, eps, backbone.embed([""]), times, [201])
        found = losses.flatten(2).sum(dim=2)[0].tolist()
        assert found == sorted(found)
        assert found[1] > 2 * found[0]

    def test_beside_the_first(self) -> None:
        """Where it weighs: for all alike, or for each; 1 of nothing, and of the same."""
        losses, mask = torch.rand(2, 4, 8, 8) + 0.1, torch.zeros(2, 1, 8, 8)
        mask[..., :5] = 1
        found = beside_first(losses, mask)
        expected = losses[1, 3, :, :5].sum() / losses[1, 0, :, :5].sum()
        torch.testing.assert_close(found[1, 2], expected)
        each = torch.cat((mask, 0 * mask, 3 * mask), dim=1)
        expected = torch.stack((found[:, 0], torch.ones(2), found[:, 2]), dim=1)
        torch.testing.assert_close(beside_first(losses, each), expected)
        same = losses[:, :1].expand_as(losses)
        torch.testing.assert_close(beside_first(same, each), torch.ones(2, 3))


class TestHeld:
    def test_noised_is_taken_back(self) -> None:
        z_0, eps = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
        a = torch.tensor(0.3, dtype=torch.float64)
        torch.testing.assert_close(predict_z0(noised(z_0, eps, a), eps, a), z_0)

    def test_cells_follow_until_their_step(self, backbone64: StableDiffusion) -> None:
        """The left half for 4 of 10 steps, the right one never; above there is no mask."""
        until, mask = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
        until[..., :4], mask[..., :2, :] = 0.4, 0.0
        denoising = held_denoising(backbone64, until=until, mask=mask)
        z = torch.randn(2, 4, 8, 8, dtype=torch.float64)
        for step in range(10):
            found = denoising.held(z, step)
            left = denoising.noisy(denoising.warped, step) if step < 4 else z
            assert torch.equal(found[..., 2:, :4], left[..., 2:, :4])
            assert torch.equal(found[..., 2:, 4:], z[..., 2:, 4:])
            source = denoising.noisy(denoising.source, step)
            assert torch.equal(found[..., :2, :], source[..., :2, :])

    def test_a_step_begins_with_what_is_held(self, backbone64: StableDiffusion) -> None:
        """Whatever it is given, if all is held."""
        held = held_denoising(backbone64, until=torch.ones(2, 1, 8, 8))
        found = held.step(*torch.randn(2, 2, 4, 8, 8).double(), 3, [-1, -1])
        same = held.step(*torch.randn(2, 2, 4, 8, 8).double(), 3, [-1, -1])
        assert all(torch.equal(one, other) for one, other in zip(found, same, strict=True))
        free = held_denoising(backbone64).step(*torch.randn(2, 2, 4, 8, 8).double(), 3, [-1, -1])
        assert not torch.equal(free[1], found[1])

    def test_soft_inside(self) -> None:
        mask = torch.zeros(1, 1, 30, 40)
        mask[..., 10:, 15:30] = 1
        soft = soft_inside(mask, 4)
        assert torch.equal(soft[mask == 0], torch.zeros(int((mask == 0).sum())))
        assert (soft[..., 16:, 21:24] == 1).all()  # and to the lower border, which is none
        row = soft[0, 0, 20, 14:22]
        assert row[0] == 0
        assert (row[1:] >= row[:-1]).all()
        assert torch.equal(soft_inside(mask, 0), mask)
        assert torch.equal(soft_inside(torch.ones(1, 1, 9, 9), 4), torch.ones(1, 1, 9, 9))


class TestStart:
    def test_a_sample_s_choice_is_its_own(self, tiny_folder: Path) -> None:
        made = editor(tiny_folder)
        batch = [make_sample(seed, pairs) for seed, pairs in ((1, 1), (2, 2), (3, 3))]
        together = started(made, batch)
        for i, sample in enumerate(batch):
            alone = started(made, [sample])
            for name in ("source", "warped", "eps", "mask", "until"):
                one, all_of_them = getattr(alone, name), getattr(together, name)
                torch.testing.assert_close(one[0], all_of_them[i], rtol=0, atol=1e-9)

    @pytest.mark.parametrize(("likely", "until"), [(1e9, 0.85), (0.0, 0.3)])
    def test_how_long_a_warp_is_held(self, tiny_folder: Path, likely: float, until: float) -> None:
        """Holes never; the rest by whether the model finds the warp likely."""
        made = editor(tiny_folder, f"method.likely={likely}", "~editor.warps.sheet")
        sample = make_sample(seed=1, pairs=1)
        begun = started(made, [sample])
        assert bool(begun.likely.all()) == (likely > 0)
        values = sorted({round(value, 4) for value in begun.until.flatten().tolist()})
        assert values in ([0, until], [until])

    def test_a_hole_is_free(self, tiny_folder: Path) -> None:
        made = editor(
            tiny_folder, "~editor.warps.sheet", "~editor.warps.near", "~editor.warps.zoom"
        )
        handle = torch.tensor([[20.0, 30.0]])
        sample = replace(make_sample(seed=1, mask=False), handles=handle, targets=handle + 16)
        until = started(made, [sample]).until[0, 0]
        hole = torch.zeros(8, 8, dtype=torch.bool)
        hole[:6, :2] = hole[:2, :6] = True  # what went to the lower right; two cells stay
        assert torch.equal(until == 0, hole)

    def test_nothing_dragged(self, tiny_folder: Path) -> None:
        """All warps are as good as the source, which surprises the model as much as itself."""
        sample = make_sample(seed=1)
        still = replace(sample, targets=sample.handles + 1e-3)
        begun = started(editor(tiny_folder), [still])
        torch.testing.assert_close(begun.warped, begun.source, rtol=0, atol=1e-2)
        assert (begun.until == begun.until[0, 0, 0, 0]).all()
        assert begun.likely.all()


class TestEdits:
    def test_outside_the_mask_it_is_the_source_to_the_bit(self, tiny_folder: Path) -> None:
        batch = [make_sample(seed=1), make_sample(seed=2, pairs=1)]
        for sample, edit in zip(batch, editor(tiny_folder)(batch), strict=True):
            assert sample.mask is not None
            outside = (sample.mask == 0).expand_as(sample.image)
            assert torch.equal(edit.image[outside], sample.image[outside])
            assert not torch.equal(edit.image, sample.image)

    def test_a_likely_warp_is_not_dragged(self, tiny_folder: Path) -> None:
        samples = [make_sample(seed=1), make_sample(seed=2)]
        for likely, operations in ((1e9, 0), (0.0, 3)):
            for edit in editor(tiny_folder, f"method.likely={likely}")(samples):
                assert edit.trajectory is not None
                assert len(edit.trajectory.operations) == operations
                assert edit.trajectory.stop == ("arrived" if likely else "schedule")
                assert edit.trajectory.stopped_at == (0 if likely else None)

    def test_no_dragging_at_all(self, tiny_folder: Path) -> None:
        """K = 0 is what a likely warp gets anyway, once it is held as long."""
        batch = [make_sample(seed=1), make_sample(seed=2, pairs=1)]
        held = ["method.held_unlikely=0.75", "method.held_likely=0.75", "method.after=0.75"]
        none = editor(tiny_folder, "method.K=0", "method.likely=0", *held)(batch)
        likely = editor(tiny_folder, "method.K=1", "method.likely=1e9", *held)(batch)
        for sample, edit, other in zip(batch, none, likely, strict=True):
            assert edit.trajectory is not None
            assert edit.trajectory.operations == []
            assert torch.equal(edit.image, other.image)
            assert torch.equal(edit.handles, (sample.targets / 2).round() * 2)

    @pytest.mark.parametrize("mask", [torch.zeros(1, 64, 64), torch.ones(1, 64, 64), None])
    def test_masks(self, tiny_folder: Path, mask: torch.Tensor | None) -> None:
        """Without a single editable pixel all is editable, as without a mask."""
        sample = replace(make_sample(seed=1), mask=mask)
        edit = editor(tiny_folder, "method.K=0")([sample])[0]
        free = editor(tiny_folder, "method.K=0")([replace(sample, mask=None)])[0]
        assert torch.equal(edit.image, free.image)
        assert (edit.image != sample.image).float().mean() > 0.9

    def test_a_frozen_picture(self, tiny_folder: Path) -> None:
        sample = make_sample(seed=1, mask=False)
        edit = editor(tiny_folder, "method.empty_mask=frozen")([sample])[0]
        assert torch.equal(edit.image, sample.image)

    def test_it_is_of_seed_and_name(self, tiny_folder: Path) -> None:
        made, sample = editor(tiny_folder, "method.K=0"), make_sample(seed=1)
        one, again, other = (made([sample], seed=seed)[0].image for seed in (0, 0, 1))
        renamed = made([replace(sample, name="another")], seed=0)[0].image
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
        assert not torch.equal(one, renamed)

    @pytest.mark.parametrize(
        ("override", "told"),
        [
            ("method.judged_at=[1000]", "judged_at"),
            ("method.judged_at=[]", "judged_at"),
            ("method.held_likely=1.2", "held_likely"),
            ("method.edge=-1", "edge"),
            ("method.after=1", "after"),
            ("method.reach=0", "reach"),
            ("method.least=0", "least"),
            ("method.held_unlikely=0.51", "held_unlikely=0.51 .* step 3 of 4: take at most 0.5,"),
            ("method.after=0", "step 1 of 4: take at most 0.0, or raise method.after"),
        ],
    )
    def test_impossible_numbers(self, tiny_folder: Path, override: str, told: str) -> None:
        with pytest.raises(ValueError, match=told):
            editor(tiny_folder, override)

    def test_no_drag_operation_is_undone(self, tiny_folder: Path) -> None:
        """A warp held until the step of the first ones: 0.3, of which float32 makes more."""
        words = ["method.steps=10", "method.strength=1", "method.after=0.3", "method.K=1"]
        made = editor(tiny_folder, *words, "method.held_unlikely=0.3", "method.likely=0")
        assert made.schedule == [0, 0, 0, 1]
        begun = started(made, [make_sample(seed=1, mask=False)])
        z = torch.randn_like(begun.warped)
        assert torch.equal(begun.held(z, 3), z)
        assert not torch.equal(begun.held(z, 2), z)

    def test_a_patch_larger_than_the_map(self, tiny_folder: Path) -> None:
        with pytest.raises(ValueError, match="r1"):
            editor(tiny_folder, "method.r1=40")([make_sample(seed=1)])
