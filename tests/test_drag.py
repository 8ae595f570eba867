"""The fit equals a plain loop, and samples of a batch do not see each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from gooddrag import ddim
from gooddrag.adapt import NoAdapter
from gooddrag.backbones.adapters import initial_adapter
from gooddrag.backbones.stable_diffusion import StableDiffusion
from gooddrag.denoising import MutualAttention, PairedDenoising
from gooddrag.drag import DragOptimization, DragSettings
from gooddrag.events import EditCallback, Phases
from gooddrag.methods.latent_drag import LatentDrag
from gooddrag.reference import Pairs, reference_pass
from gooddrag.schedule import aldd, drag_first, spread
from gooddrag.supervision import MotionSupervision
from gooddrag.tracking import PointTracking
from gooddrag.types import DragOperation, DragSample, Edit
from tests.plain_loop import plain_drag
from tests.tiny import make_sample

SETTINGS = DragSettings(
    J=2,
    lr=0.02,
    betas=(0.9, 0.999),
    restart_adam=True,
    patience=5,
    patience_restarts=False,
    on_arrival="good",
)
SUPERVISION = MotionSupervision(
    r1=2, beta=4, lam=0.1, scale="official", reference="original", arrival=2.0, arrived="skip"
)


def make_editor(backbone: StableDiffusion, schedule: list[int], **changes: Any) -> LatentDrag:
    parts: dict[str, Any] = {
        "adapt": NoAdapter(),
        "supervision": SUPERVISION,
        "tracking": PointTracking(r2=3, when="stale", on_entry=True),
        "attention": MutualAttention(when="after_drag", start_layer=10, start_step=0),
        "settings": SETTINGS,
        "steps": 10,
        "strength": 0.75,
        "fit": "pad",
        "grid_rounding": "nearest",
        "empty_mask": "free",
    }
    return LatentDrag(backbone=backbone, schedule=schedule, **(parts | changes))


def drag_both_ways(editor: LatentDrag, sample: DragSample) -> tuple[DragOptimization, Any]:
    """The module after its fit, and the plain loop's result."""
    canvas = editor._canvas([sample])
    z_0 = editor._encode([sample], canvas)
    mask = editor._mask([sample], canvas, z_0)
    text = editor.backbone.embed([""])
    z_T = ddim.invert(z_0, lambda z, t: editor.backbone.noise(z, t, text), editor.times)
    pairs = Pairs.of([sample], canvas, editor.grid_rounding, torch.device("cpu"))
    references = reference_pass(
        editor.backbone,
        z_T,
        text,
        editor.times,
        editor.dragged_steps,
        pairs,
        canvas,
        editor.supervision.r1,
    )
    denoising = PairedDenoising(editor.backbone, text, editor.times, editor.attention)
    module = editor._drag(z_T, mask, pairs, references, denoising, canvas, Phases([]))
    return module, plain_drag(editor, canvas, z_T, mask, pairs, references, denoising)


@pytest.mark.parametrize(
    ("schedule", "changes"),
    [
        (aldd(K=4, B=2), {}),
        (aldd(K=5, B=2), {}),
        (drag_first(K=3), {}),
        (spread(K=3, steps=6), {}),
        (
            aldd(K=6, B=2),
            {
                "settings": replace(SETTINGS, patience=3),
                "tracking": PointTracking(r2=0, when="stale", on_entry=True),
            },
        ),
        (aldd(K=4, B=2), {"supervision": replace(SUPERVISION, arrival=1000.0)}),
        (aldd(K=8, B=2), {"supervision": replace(SUPERVISION, arrival=16.0)}),
    ],
    ids=["aldd", "rest", "drag_first", "spread", "no_movement", "arrived", "arrives_later"],
)
def test_fit_is_the_plain_loop_to_the_bit(
    backbone: StableDiffusion, schedule: list[int], changes: dict[str, Any]
) -> None:
    module, (z, handles, step) = drag_both_ways(
        make_editor(backbone, schedule, **changes), make_sample(seed=3)
    )
    assert torch.equal(module.z, z)
    assert torch.equal(module.handles, handles)
    assert module.step == step


def test_the_edited_branch_alone_is_what_it_is_beside_the_unedited(
    backbone64: StableDiffusion,
) -> None:
    """Where it attends to nobody and the other is known; where it attends, both are denoised."""
    editor, text = make_editor(backbone64, aldd(K=4, B=2)), backbone64.embed([""])
    z = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    paired = PairedDenoising(backbone64, text, editor.times, editor.attention)
    expected = paired.step(*z, 0, [1])
    alone = replace(paired, known=[expected[0]])
    latents: list[int] = []
    counted = backbone64.unet.register_forward_pre_hook(
        lambda _, args: latents.append(len(args[0]))
    )
    try:
        for found, wanted in zip(alone.step(*z, 0, [1]), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        alone.step(*z, 0, [-1])
    finally:
        counted.remove()
    assert latents == [1, 2]


@pytest.mark.parametrize("changes", [{}, {"settings": replace(SETTINGS, patience=2)}])
@pytest.mark.parametrize("when", ["stale", "fresh", "before"])
def test_looking_ahead_changes_nothing(
    backbone: StableDiffusion, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], when: str
) -> None:
    """On a device the next forward starts before the handles are known."""

    class Ahead(DragOptimization):
        def __init__(self, **parts: Any) -> None:
            super().__init__(**parts)
            self.looks_ahead = True

    tracking = PointTracking(r2=3, when=when, on_entry=when == "stale")
    editor = make_editor(backbone, aldd(K=6, B=3), tracking=tracking, **changes)
    sample = make_sample(seed=1)
    expected = editor([sample])[0]
    monkeypatch.setattr("gooddrag.methods.latent_drag.DragOptimization", Ahead)
    found = editor([sample])[0]
    assert torch.equal(found.image, expected.image)
    assert torch.equal(found.handles, expected.handles)
    assert [o.losses for o in found.trajectory.operations] == [
        o.losses for o in expected.trajectory.operations
    ]


def test_stops_are_recorded(backbone: StableDiffusion) -> None:
    still = PointTracking(r2=0, when="stale", on_entry=True)
    impatient = make_editor(
        backbone, aldd(K=6, B=2), tracking=still, settings=replace(SETTINGS, patience=3)
    )
    far = make_editor(backbone, aldd(4, 2), supervision=replace(SUPERVISION, arrival=1000.0))
    for editor, why in ((impatient, "no movement"), (far, "arrived")):
        trajectory = editor([make_sample(seed=3)])[0].trajectory
        assert (trajectory.stop, trajectory.stopped_at is not None) == (why, True)
    trajectory = far([make_sample(seed=3)])[0].trajectory
    assert not trajectory.operations
    assert len(trajectory.trackings) == 1  # the one on entry


class ManyAdapters:
    """A different random adapter for each sample."""

    def __call__(self, backbone: StableDiffusion, samples: Any, phases: Phases) -> list:
        adapters = []
        for sample in samples:
            generator = torch.Generator().manual_seed(len(sample.name) + int(sample.name[-1]))
            adapter = initial_adapter(backbone.unet, 2, ["to_q", "to_v"], generator)
            for key, weight in adapter.items():
                adapter[key] = weight + 0.05 * torch.randn(weight.shape, generator=generator)
            adapters.append(adapter)
        return adapters


def test_a_batch_is_its_samples_step_for_step(backbone64: StableDiffusion) -> None:
    """Ragged pairs, own adapters, masks and stops; float64, since dragging is chaotic."""
    samples = [
        make_sample(seed=1, pairs=1),
        make_sample(seed=2, pairs=3, mask=False),
        make_sample(seed=3, pairs=2),
    ]
    editor = make_editor(
        backbone64,
        aldd(K=6, B=2),
        adapt=ManyAdapters(),
        supervision=replace(SUPERVISION, arrival=14.0),
        settings=replace(SETTINGS, patience=2),
    )
    together = editor(samples)
    stops = set()
    for sample, edit in zip(samples, together, strict=True):
        alone = editor([sample])[0]
        stops.add((edit.trajectory.stop, edit.trajectory.stopped_at))
        assert edit.trajectory.stop == alone.trajectory.stop
        assert edit.trajectory.stopped_at == alone.trajectory.stopped_at
        assert len(edit.trajectory.trackings) == len(alone.trajectory.trackings)
        for one, other in zip(edit.trajectory.trackings, alone.trajectory.trackings, strict=True):
            assert torch.equal(one.grid, other.grid)
        for one, other in zip(edit.trajectory.operations, alone.trajectory.operations, strict=True):
            assert one.losses == pytest.approx(other.losses, rel=1e-9)
        torch.testing.assert_close(edit.image, alone.image, rtol=0, atol=1e-6)
    assert len(stops) > 1  # the samples did not all end at once


@pytest.mark.parametrize("when", ["stale", "fresh", "before"])
def test_when_to_track(backbone: StableDiffusion, when: str) -> None:
    editor = make_editor(
        backbone,
        aldd(K=4, B=2),
        tracking=PointTracking(r2=3, when=when, on_entry=False),
        settings=replace(SETTINGS, patience=None),
    )
    trackings = editor([make_sample(seed=3)])[0].trajectory.trackings
    after = [(t.step, t.gradient_steps) for t in trackings]
    if when == "before":
        assert after == [(0, 2), (1, 0), (1, 2)]
    else:
        assert after == [(0, 2), (0, 4), (1, 2), (1, 4)]


def test_rest_of_a_step_after_arrival(backbone: StableDiffusion) -> None:
    settings = replace(SETTINGS, on_arrival="step", patience=None)
    editor = make_editor(
        backbone, aldd(4, 2), settings=settings, supervision=replace(SUPERVISION, arrival=1000.0)
    )
    trajectory = editor([make_sample(seed=3)])[0].trajectory
    assert [t.step for t in trajectory.trackings] == [0, 1]  # entered twice, dragged never
    assert not trajectory.operations
    assert trajectory.stop == "schedule"


def test_never_stopping_on_arrival(backbone: StableDiffusion) -> None:
    settings = replace(SETTINGS, on_arrival="never", patience=None)
    editor = make_editor(
        backbone, aldd(4, 2), settings=settings, supervision=replace(SUPERVISION, arrival=1000.0)
    )
    assert len(editor([make_sample(seed=3)])[0].trajectory.operations) == 4


def test_adam_goes_on_if_it_is_not_restarted(backbone: StableDiffusion) -> None:
    sample = make_sample(seed=3)
    restarted = make_editor(backbone, aldd(2, 1))([sample])[0]
    going_on = make_editor(backbone, aldd(2, 1), settings=replace(SETTINGS, restart_adam=False))(
        [sample]
    )[0]
    first, second = (e.trajectory.operations for e in (restarted, going_on))
    assert first[0].losses == second[0].losses
    assert not torch.equal(restarted.image, going_on.image)


class Events(EditCallback):
    def __init__(self) -> None:
        self.phases: list[str] = []
        self.advances: dict[str, int] = {}
        self.operations: list[DragOperation] = []
        self.ended: list[Edit] = []

    def on_phase_start(self, phase: str, total: int) -> None:
        self.phases.append(phase)

    def on_phase_advance(self, phase: str, loss: torch.Tensor | None = None) -> None:
        self.advances[phase] = self.advances.get(phase, 0) + 1

    def on_drag_operation(self, operation: DragOperation) -> None:
        assert operation.preview is not None
        if operation.k == 1:
            assert operation.preview().shape == (3, 64, 64)
        self.operations.append(operation)

    def on_edit_end(self, samples: Any, edits: Any) -> None:
        self.ended.extend(edits)


def test_events_tell_the_whole_edit(backbone: StableDiffusion) -> None:
    events = Events()
    editor = make_editor(backbone, aldd(4, 2), settings=replace(SETTINGS, patience=None))
    edit = editor([make_sample(seed=3)], callbacks=[events])[0]
    assert events.phases == ["invert", "reference", "drag", "denoise", "decode"]
    assert events.advances == {"invert": 8, "reference": 2, "drag": 4, "denoise": 6, "decode": 1}
    assert [o.k for o in events.operations] == [1, 2, 3, 4]
    assert [o.losses for o in events.operations] == [o.losses for o in edit.trajectory.operations]
    assert events.ended == [edit]
    assert set(edit.seconds) == set(events.phases)
    assert edit.peak_memory > 0


@pytest.mark.parametrize(
    "change",
    [{"on_arrival": "sometimes"}, {"J": 0}, {"lr": 0.0}, {"betas": (0.9, 1.0)}, {"patience": 0}],
)
def test_settings_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(SETTINGS, **change)
