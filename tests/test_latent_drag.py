"""Whole edits: sizes, masks, batches, memory, and what callbacks are told when things go wrong."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gooddrag.backbones.stable_diffusion import StableDiffusion
from gooddrag.callbacks.csv_logger import CsvEdit
from gooddrag.denoising import MutualAttention
from gooddrag.events import EditCallback
from gooddrag.schedule import aldd
from tests import tiny
from tests.test_backbones import random_adapter
from tests.test_drag import SETTINGS, SUPERVISION, make_editor
from tests.tiny import make_sample


class TestSizes:
    @pytest.mark.parametrize("size", [(64, 64), (56, 72), (61, 70), (33, 90)])
    @pytest.mark.parametrize("fit", ["pad", "resize"])
    def test_any_size_comes_back(
        self, backbone: StableDiffusion, size: tuple[int, int], fit: str
    ) -> None:
        edit = make_editor(backbone, aldd(1, 1), fit=fit)([make_sample(seed=1, size=size)])[0]
        assert edit.image.shape == (3, *size)
        assert edit.image.min() >= 0
        assert edit.image.max() <= 1
        height, width = size
        assert (edit.handles >= 0).all()
        assert (edit.handles <= torch.tensor([width - 1, height - 1])).all()

    def test_both_fits_agree_on_whole_cells(self, backbone: StableDiffusion) -> None:
        sample = make_sample(seed=1, size=(56, 72))
        one, other = (
            make_editor(backbone, aldd(1, 1), fit=f)([sample])[0] for f in ("pad", "resize")
        )
        assert torch.equal(one.image, other.image)

    def test_points_in_every_corner(self, backbone: StableDiffusion) -> None:
        """The official code fails for handles within 24 pixels of a border."""
        sample = make_sample(seed=1, size=(61, 70))
        corners = torch.tensor([[0.0, 0.0], [69.0, 60.0], [0.0, 60.0], [69.0, 0.0]])
        sample = replace(sample, handles=corners, targets=corners.flip(0))
        edit = make_editor(backbone, aldd(2, 1))([sample])[0]
        assert torch.isfinite(edit.image).all()

    def test_sizes_of_a_batch_must_agree(self, backbone: StableDiffusion) -> None:
        samples = [make_sample(seed=1), make_sample(seed=2, size=(64, 72))]
        with pytest.raises(ValueError, match="64 x 64, 72 x 64"):
            make_editor(backbone, aldd(1, 1))(samples)

    @pytest.mark.parametrize("r1", [31, 32, 100_000])
    def test_a_patch_larger_than_the_map_is_refused(
        self, backbone: StableDiffusion, r1: int
    ) -> None:
        editor = make_editor(backbone, aldd(1, 1), supervision=replace(SUPERVISION, r1=r1))
        if r1 < 32:
            assert editor([make_sample(seed=1)])[0].image.shape == (3, 64, 64)
        else:
            with pytest.raises(ValueError, match=r"method\.r1 is .* 32 x 32 grid"):
                editor([make_sample(seed=1)])


class TestMask:
    def test_an_empty_mask_frees_everything_or_nothing(self, backbone: StableDiffusion) -> None:
        empty = replace(make_sample(seed=1), mask=torch.zeros(1, 64, 64))
        absent, full = replace(empty, mask=None), replace(empty, mask=torch.ones(1, 64, 64))
        free = make_editor(backbone, aldd(2, 1))
        frozen = make_editor(backbone, aldd(2, 1), empty_mask="frozen")
        expected = free([full])[0].image
        assert torch.equal(free([empty])[0].image, expected)
        assert torch.equal(free([absent])[0].image, expected)
        assert not torch.equal(frozen([empty])[0].image, expected)

    def test_the_mask_term_holds_what_is_outside(self, backbone64: StableDiffusion) -> None:
        """A heavier mask term leaves the latent outside the mask nearer to the unedited one."""
        sample, distance = make_sample(seed=1), []
        for lam in (0.0, 10.0):
            editor = make_editor(backbone64, aldd(6, 6))
            editor.supervision = replace(editor.supervision, lam=lam)
            terms = [
                total - drag
                for o in editor([sample])[0].trajectory.operations
                for total, drag in zip(o.losses, o.drag_losses, strict=True)
            ]
            distance.append(sum(terms[-3:]) / max(lam, 1))
        assert distance[0] == 0
        assert distance[1] > 0

    def test_unknown_word(self, backbone: StableDiffusion) -> None:
        with pytest.raises(ValueError, match="empty_mask"):
            make_editor(backbone, aldd(1, 1), empty_mask="ignore")


def test_an_edit_repeats_to_the_bit(backbone: StableDiffusion) -> None:
    editor = make_editor(backbone, aldd(4, 2))
    one, other = (editor([make_sample(seed=1)])[0] for _ in range(2))
    assert torch.equal(one.image, other.image)


class TestASecondDrag:
    """Of the same picture inversion and unedited branch are remembered, whatever is dragged.

    Another picture, prompt or LoRA is another.
    """

    def phases_of(self, editor: Any, sample: Any) -> dict[str, int]:
        class Totals(EditCallback):
            def __init__(self) -> None:
                self.found: dict[str, int] = {}

            def on_phase_start(self, phase: str, total: int) -> None:
                self.found[phase] = total

        totals = Totals()
        editor([sample], callbacks=[totals])
        return totals.found

    def test_of_the_same_picture(self, backbone: StableDiffusion) -> None:
        editor, sample = make_editor(backbone, aldd(2, 1)), make_sample(seed=1)
        assert self.phases_of(editor, sample)["invert"] > 0
        elsewhere = replace(sample, targets=sample.targets.flip(0))
        found = editor([elsewhere])[0]
        again = self.phases_of(editor, elsewhere)
        assert (again["invert"], again["reference"]) == (0, 0)
        fresh = make_editor(backbone, aldd(2, 1))([elsewhere])[0]
        assert torch.equal(found.image, fresh.image)
        assert self.phases_of(editor, replace(sample, prompt="a cat"))["invert"] > 0
        other = self.phases_of(editor, make_sample(seed=2))
        assert other["invert"] > 0
        assert other["reference"] > 0

    def test_another_picture_comes_with_all_memory_free(self, backbone: StableDiffusion) -> None:
        """What is remembered of one is let go before the next is adapted to."""
        remembered: list[bool] = []

        def adapt(*_: Any) -> None:
            remembered.append(editor._unedited._last is not None)

        editor, sample = make_editor(backbone, aldd(2, 1), adapt=adapt), make_sample(seed=1)
        for one in (sample, sample, make_sample(seed=2)):
            editor([one])
        assert remembered == [False, True, False]

    def test_a_picture_that_is_changed_in_place(self, backbone: StableDiffusion) -> None:
        editor, sample = make_editor(backbone, aldd(1, 1)), make_sample(seed=1)
        self.phases_of(editor, sample)
        sample.image[:, :8] = 0
        assert self.phases_of(editor, sample)["invert"] > 0

    def test_with_another_lora(self, backbone: StableDiffusion) -> None:
        made = iter(random_adapter(backbone, seed) for seed in (1, 1, 2))
        editor = make_editor(backbone, aldd(1, 1), adapt=lambda *_: [next(made)])
        sample = make_sample(seed=1)
        totals = [self.phases_of(editor, sample)["invert"] for _ in range(3)]
        assert [total > 0 for total in totals] == [True, False, True]


def test_a_schedule_longer_than_the_ladder_is_refused(backbone: StableDiffusion) -> None:
    with pytest.raises(ValueError, match=r"raise method\.B"):
        make_editor(backbone, aldd(9, 1))  # 8 steps are walked


@pytest.mark.parametrize("when", ["always", "never"])
def test_mutual_attention_matters(backbone: StableDiffusion, when: str) -> None:
    sample = make_sample(seed=1)
    settings = replace(SETTINGS, patience=None)
    attention = MutualAttention(when=when, start_layer=10, start_step=0)
    usual = make_editor(backbone, aldd(4, 2), settings=settings)([sample])[0]
    other = make_editor(backbone, aldd(4, 2), settings=settings, attention=attention)([sample])[0]
    assert usual.trajectory.operations[0].losses == other.trajectory.operations[0].losses
    assert not torch.equal(usual.image, other.image)


class TestMutualAttentionSteps:
    def test_when(self) -> None:
        after = MutualAttention(when="after_drag", start_layer=10, start_step=0)
        assert after.active(3, [2, 3]) == [True, False]
        later = MutualAttention(when="after_drag", start_layer=10, start_step=2)
        assert [later.active(i, [2])[0] for i in range(7)] == [False] * 5 + [True] * 2
        assert MutualAttention(when="always", start_layer=0, start_step=0).active(0, [6]) == [True]
        assert MutualAttention(when="never", start_layer=0, start_step=0).active(9, [6]) == [False]

    def test_unknown_word(self) -> None:
        with pytest.raises(ValueError, match=r"attention\.when"):
            MutualAttention(when="sometimes", start_layer=0, start_step=0)


class Told(EditCallback):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_edit_exception(self, samples: Any, error: BaseException) -> None:
        self.heard.append(error)

    def on_edit_end(self, samples: Any, edits: Any) -> None:
        self.heard.append("done")


class TestOutOfMemory:
    def test_one_retry_with_less_memory(
        self,
        tiny_folder: Any,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        """Of the first try nothing is remembered, and no curve is left."""
        backbone, told = tiny.load(tiny_folder), Told()
        passes: list[object] = []
        backbone.unet.register_forward_pre_hook(lambda *of: passes.append(of))
        make_editor(backbone, aldd(1, 1))([make_sample(seed=1)])
        alone = len(passes)
        fails = iter([True, False])
        decode = backbone.decode

        def scarce(z: torch.Tensor) -> torch.Tensor:
            if next(fails, False):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return decode(z)

        monkeypatch.setattr(backbone, "decode", scarce)
        callbacks = [told, CsvEdit(tmp_path)]
        make_editor(backbone, aldd(1, 1))([make_sample(seed=1)], callbacks=callbacks)
        assert backbone.low_memory
        assert told.heard == ["done"]
        with open(tmp_path / "metrics.csv", newline="") as file:
            rows = [(row["phase"], row["index"]) for row in csv.DictReader(file)]
        assert rows == [("drag", "1")]
        assert len(passes) == alone + 2 * alone
        assert "out of memory (CUDA out of memory): trying once more" in capsys.readouterr().err

    def test_and_no_second_one(self, tiny_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        backbone, told, tries = tiny.load(tiny_folder), Told(), []

        def never(z: torch.Tensor) -> torch.Tensor:
            tries.append(z)
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(backbone, "decode", never)
        with pytest.raises(torch.OutOfMemoryError):
            make_editor(backbone, aldd(1, 1))([make_sample(seed=1)], callbacks=[told])
        assert len(tries) == 2
        assert isinstance(told.heard[0], torch.OutOfMemoryError)


def test_one_adam_for_samples_that_rest_for_a_while(backbone: StableDiffusion) -> None:
    """It would go on for them: alone they may have it."""
    editor = make_editor(backbone, aldd(1, 1))
    editor.settings = replace(editor.settings, on_arrival="step", restart_adam=False)
    samples = [make_sample(seed=1), make_sample(seed=2)]
    with pytest.raises(ValueError, match=r"a batch of 2: take batch=1"):
        editor(samples)
    assert len(editor(samples[:1])) == 1


def test_callbacks_hear_of_an_exception(
    backbone: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()

    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    editor = make_editor(backbone, aldd(1, 1))
    monkeypatch.setattr(editor, "adapt", broken)
    with pytest.raises(KeyboardInterrupt):
        editor([make_sample(seed=1)], callbacks=[told])
    assert isinstance(told.heard[0], KeyboardInterrupt)
