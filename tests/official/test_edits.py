"""Whole edits in float64, step for step like the official code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gooddrag.data.images import to_uint8
from tests.official.traces import Recorder, dragging_of, edit_of, needs_traces, trace

slow = pytest.mark.slow
WHOLE = [
    "cat_nolora_f64",
    "cat_lora_f64",
    pytest.param("furniture_nolora_f64", marks=slow),
]
SHORT = ["cat_nolora", "cat_earlystop"]

pytestmark = needs_traces


def dragging(name: str, loops: int | None) -> Recorder:
    """In float64; None is the whole edit's."""
    return edit_of(name, "float64")[1] if loops is None else dragging_of(name, "float64", loops)


@pytest.mark.parametrize(
    ("name", "loops"),
    [
        ("cat_nolora_f64", None),
        ("cat_lora_f64", None),
        ("furniture_nolora_f64", 1),
        pytest.param("furniture_nolora_f64", None, marks=slow),
    ],
)
class TestDragging:
    def test_every_tracking(self, name: str, loops: int | None) -> None:
        expected, trackings = trace(name), dragging(name, loops).trajectory.trackings
        compared = expected["track_i"] < (loops or len(expected["denoise_t"]))
        for key, found in (
            ("track_i", [t.step for t in trackings]),
            ("track_t", [t.timestep for t in trackings]),
            ("track_after_steps", [t.gradient_steps for t in trackings]),
        ):
            assert found == expected[key][compared].tolist()
        found = torch.stack([t.grid for t in trackings]).double()
        assert torch.equal(found, expected["track_handles"][compared].double())

    def test_losses(self, name: str, loops: int | None) -> None:
        expected, operations = trace(name), dragging(name, loops).trajectory.operations
        compared = expected.arrays["ms_i"] < (loops or len(expected["denoise_t"]))
        for key, found in (
            ("ms_loss", [loss for o in operations for loss in o.losses]),
            ("ms_drag_loss", [loss for o in operations for loss in o.drag_losses]),
        ):
            np.testing.assert_allclose(found, expected.arrays[key][compared], rtol=1e-6)

    def test_latents(self, name: str, loops: int | None) -> None:
        expected, recorder = trace(name), dragging(name, loops)
        compared = 0
        for step in recorder.latents_in:
            for key, found in (
                (f"drag{step}_latent_in", recorder.latents_in[step]),
                (f"drag{step}_latent_out", recorder.latents_out[step]),
            ):
                if key in expected.arrays:
                    torch.testing.assert_close(found, expected[key], rtol=0, atol=1e-6)
                    compared += 1
        for step, latent in enumerate(expected["denoise_latent"]):
            if step + 1 in recorder.latents_in:
                found = recorder.latents_in[step + 1][0]
                torch.testing.assert_close(found, latent, rtol=0, atol=1e-6)
        assert compared >= 2


@pytest.mark.parametrize("name", WHOLE)
class TestWholeEdit:
    def test_steps_and_stop(self, name: str) -> None:
        expected = trace(name)
        trajectory = edit_of(name, "float64")[0].trajectory
        steps: dict[int, int] = {}
        for operation in trajectory.operations:
            steps[operation.step] = steps.get(operation.step, 0) + len(operation.losses)
        assert steps == expected.losses_of_loop
        calls = expected.info["drag_calls"]
        ended_early = not calls[-1]["do_drag"] or calls[-1]["no_change_track_num"] == 5
        assert (trajectory.stop != "schedule") == ended_early
        if ended_early:
            assert trajectory.stopped_at == len(calls) - 1
            assert (trajectory.stop == "no movement") == (calls[-1]["no_change_track_num"] == 5)

    def test_picture(self, name: str) -> None:
        expected = trace(name)
        edit = edit_of(name, "float64")[0]
        assert torch.equal(to_uint8(edit.image, "truncate"), expected["final_image"])
        points = torch.tensor(expected.info["new_points"])[0::2]
        assert torch.equal(edit.handles.round().long(), points)

    def test_dragging_accuracy_index(self, name: str) -> None:
        """The official script's figure from our picture, in both forms (compute_DAI.py:39,41)."""
        expected = trace(name)
        image = to_uint8(edit_of(name, "float64")[0].image, "truncate").double() / 255
        source = expected["in_image"].double() / 255
        points = expected["in_points"].reshape(-1, 2, 2).tolist()
        for gamma in (1, 5, 10, 20):
            errors = [
                (patch(source, start, gamma) - patch(image, target, gamma)).square().sum()
                / (1 + 2 * gamma) ** 2
                for start, target in points
            ]
            once = float(sum(errors)) / len(points)
            info = expected.info
            assert once == pytest.approx(info["DAI_divided_by_n_once"][str(gamma)], rel=1e-5)
            official = once / len(points)
            assert official == pytest.approx(info["DAI_official"][str(gamma)], rel=1e-5)


@pytest.mark.parametrize("name", SHORT)
def test_every_tracking_in_float32(name: str) -> None:
    expected = trace(name)
    trackings = dragging_of(name, "float32", None).trajectory.trackings
    found = torch.stack([t.grid for t in trackings]).double()
    assert torch.equal(found, expected["track_handles"].double())
    assert [t.gradient_steps for t in trackings] == expected["track_after_steps"].tolist()


def test_first_loop_in_float32() -> None:
    expected = trace("cat_nolora")
    recorder = dragging_of("cat_nolora", "float32", None)
    first = [loss for o in recorder.trajectory.operations if o.step == 0 for loss in o.losses]
    assert len(first) == 30
    np.testing.assert_allclose(first, expected.arrays["ms_loss"][:30], rtol=1e-5)
    torch.testing.assert_close(
        recorder.latents_out[0], expected.loop(0, "latent_out"), rtol=0, atol=1e-4
    )


def patch(image: torch.Tensor, point: list[int], radius: int) -> torch.Tensor:
    """(2 r + 1)^2 pixels round (x, y) of an H x W x 3 picture."""
    x, y = point
    return image[y - radius : y + radius + 1, x - radius : x + radius + 1]
