"""DragDiffusion and SDE-Drag against recordings of their own code, with the recipes as they are."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from gooddrag import Edit, load_method
from gooddrag.data.images import to_uint8
from gooddrag.events import EditCallback
from gooddrag.methods import sde_drag
from gooddrag.methods.latent_drag import LatentDrag
from gooddrag.methods.sde_drag import SDEDrag
from tests.official.traces import PEERS, arrays_of, needs_peers, peer, pipeline

pytestmark = needs_peers

SHORT = 10  # updates: before chaos could tell anything that a wrong line would not
slow = pytest.mark.slow


class Latents(EditCallback):
    """Keeps z_t after each update."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if pl_module.operations:
            self.found.append(pl_module.z.detach().clone())


@cache
def dragdiffusion(name: str, updates: int) -> tuple[Edit, list[torch.Tensor], torch.Tensor]:
    """The edit in float64, z_t after each update, and the edited latent before decoding."""
    editor = load_method(
        "dragdiffusion", [*pipeline("float64", peer(name).info["lora"]), f"method.K={updates}"]
    )
    latents, decoded = Latents(), []
    decode = editor.backbone.decode
    editor.backbone.decode = lambda z: decoded.append(z) or decode(z)
    edit = editor([peer(name).sample], callbacks=[latents])[0]
    return edit, latents.found, decoded[-1]


def test_dragdiffusion_settings() -> None:
    """The recipe's own numbers are those of the recorded runs."""
    settings = peer("dd_lora_f64").info["settings"]
    editor = load_method("dragdiffusion", pipeline("float32", None))
    assert isinstance(editor, LatentDrag)
    assert editor.schedule == [settings["n_pix_step"]]
    assert (editor.supervision.r1, editor.tracking.r2) == (settings["r_m"], settings["r_p"])
    assert (editor.settings.lr, editor.supervision.lam) == (settings["latent_lr"], settings["lam"])
    assert len(editor.times.descending) == settings["n_actual_inference_step"]
    assert editor.attention.start_layer == settings["start_layer"]
    assert editor.attention.start_step == settings["start_step"]


@pytest.mark.parametrize(
    ("name", "updates"),
    [
        ("dd_lora_f64", SHORT),
        pytest.param("dd_nolora_f64", 80, marks=slow),
        pytest.param("dd_lora_f64", 80, marks=slow),
    ],
)
class TestDragDiffusion:
    def test_every_tracking(self, name: str, updates: int) -> None:
        expected = peer(name)["ms_handles"][:updates]
        trajectory = dragdiffusion(name, updates)[0].trajectory
        found = torch.stack([t.grid for t in trajectory.trackings]).double()
        assert torch.equal(found, expected[1:])  # the first loss uses the first handles

    def test_losses(self, name: str, updates: int) -> None:
        expected = peer(name).arrays["ms_loss"][:updates]
        operations = dragdiffusion(name, updates)[0].trajectory.operations
        found = [loss for o in operations for loss in o.losses]
        np.testing.assert_allclose(found, expected[~np.isnan(expected)], rtol=1e-6)

    def test_latents(self, name: str, updates: int) -> None:
        expected, latents = peer(name), dragdiffusion(name, updates)[1]
        compared = 0
        for k, found in enumerate(latents, start=1):
            if f"latent_after{k}" in expected.arrays:
                after = expected[f"latent_after{k}"]
                torch.testing.assert_close(found, after, rtol=0, atol=1e-6)
                compared += 1
        assert compared >= 2

    def test_result(self, name: str, updates: int) -> None:
        expected, (edit, latents, z_0) = peer(name), dragdiffusion(name, updates)
        if updates == SHORT:
            assert len(latents) == SHORT
            return
        ended = {"reached": "arrived", "n_pix_step": "schedule"}[expected.info["ended"]]
        assert edit.trajectory.stop == ended
        assert len(latents) == expected.info["n_updates"]
        torch.testing.assert_close(latents[-1], expected["latent_opt"], rtol=0, atol=1e-6)
        torch.testing.assert_close(z_0, expected["final_latent"][1:], rtol=0, atol=1e-6)
        assert torch.equal(to_uint8(edit.image, "truncate"), expected["final_image"])
        last = edit.trajectory.trackings[-1].grid.double()
        assert torch.equal(last, expected["final_handles"])


class RecordedNumbers:
    """What SDE-Drag drew, in its order, in place of a generator."""

    def __init__(self) -> None:
        self.left = self.recorded()

    def __call__(self, shape: tuple[int, ...]) -> torch.Tensor:
        drawn = next(self.left)
        assert tuple(drawn.shape) == tuple(shape)
        return drawn

    @staticmethod
    def recorded() -> Iterator[torch.Tensor]:
        noise = {k: torch.from_numpy(v) for k, v in arrays_of(PEERS, "sde_noise").items()}
        yield noise["posterior_noise"]
        for i, steps in enumerate(noise["fwd_noise"]):
            yield from steps[:, None]
            yield from (noise[f"paste_noise_d{i}_p{j}"] for j in range(2))


@pytest.fixture(scope="module")
def editor() -> SDEDrag:
    made = load_method("sde_drag", pipeline("float32", None))
    assert isinstance(made, SDEDrag)
    made._draw = lambda sample, seed: RecordedNumbers()  # type: ignore[method-assign]
    return made


class TestPartsOfSDEDrag:
    """In float32, each from what was recorded before it."""

    def test_settings(self, editor: SDEDrag) -> None:
        names = {"t_0": "strength"}
        for name, value in peer("sde_cfg").info["settings"].items():
            if name != "seed":
                assert getattr(editor.settings, names.get(name, name)) == value

    def test_timesteps(self, editor: SDEDrag) -> None:
        expected = peer("sde_nolora")
        assert editor.levels.t[:-1] == expected["fwd_t"].tolist()
        assert editor.levels.t[:0:-1] == expected["bwd_t"].tolist()

    @pytest.mark.parametrize("scale", [sde_drag.guidance_scale, sde_drag.lora_scale])
    def test_scales(self, scale: Any) -> None:
        name, limit = {"guidance_scale": ("cfg_scale", 3.0), "lora_scale": ("lora_scale", 0.5)}[
            scale.__name__
        ]
        found = [scale(k, 120, limit) for k in reversed(range(120))]
        np.testing.assert_allclose(found, peer("sde_nolora").arrays[name], rtol=1e-12)

    def test_mask(self, editor: SDEDrag) -> None:
        expected = peer("sde_nolora")
        canvas = editor._canvas([expected.sample])
        masks = editor._masks([expected.sample], canvas)
        found = sde_drag.shrunk_mask(masks, (32, 32))[0, 0]
        assert torch.equal(found, expected["mask_latent"].bool())

    def test_moves(self, editor: SDEDrag) -> None:
        expected = peer("sde_nolora")
        found = sde_drag.moves(*editor._cells(expected.sample), editor.settings.step_size)
        assert len(found) == expected.info["drag_num"] == 2
        for i, (source, target) in enumerate(found):
            assert torch.equal(source, expected[f"d{i}_src"])
            assert torch.equal(target, expected[f"d{i}_tgt"])

    def test_encoding(self, editor: SDEDrag) -> None:
        expected = peer("sde_nolora")
        mean, std = editor._posterior([expected.sample], editor._canvas([expected.sample]))
        found = mean + std * RecordedNumbers()(tuple(mean.shape))
        torch.testing.assert_close(found, expected["z0"], rtol=0, atol=1e-5)

    def test_noising_and_pasting(self, editor: SDEDrag) -> None:
        expected, numbers = peer("sde_nolora"), RecordedNumbers()
        numbers((1, 4, 32, 32))
        noised = torch.cat(editor._noised(expected["z0"], [numbers]))
        torch.testing.assert_close(noised, expected["d0_fwd_latents"], rtol=0, atol=1e-5)
        move = (expected["d0_src"], expected["d0_tgt"], numbers)
        pasted = editor._pasted(expected["d0_fwd_latents"][-1:], [move])
        assert torch.equal(pasted, expected["d0_pasted"])

    def test_denoising(self, editor: SDEDrag) -> None:
        """The first and the last two steps of the first move, and what they predict."""
        expected = peer("sde_nolora")
        noised = list(expected["d0_fwd_latents"][:, None])
        known = dict(zip(expected["bwd_idx"].tolist(), expected["d0_bwd_post"], strict=True))
        text = editor.backbone.embed([""] * 4)[None]
        mask = expected["mask_latent"].bool()[None, None]
        x = {0: expected["d0_pasted"], 118: known[117][None]}
        for step in (0, 1, 118, 119):
            x[step + 1] = editor._step_back(x[step], noised, 119 - step, mask, text, None)
            torch.testing.assert_close(x[step + 1][0], known[step], rtol=1e-5, atol=1e-4)


@slow
@pytest.mark.parametrize("name", ["sde_nolora", "sde_cfg"])
def test_whole_sde_drag(editor: SDEDrag, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both moves from end to end in float32, which has no jumps here."""
    expected, after, step_back = peer(name), [], editor._step_back

    def recorded(*args: Any) -> torch.Tensor:
        after.append(step_back(*args))
        return after[-1]

    monkeypatch.setattr(editor, "_step_back", recorded)
    edit = editor([expected.sample])[0]
    for i, latents in enumerate((after[:120], after[120:])):
        for key, found in (
            (f"d{i}_bwd_post", [latents[k] for k in expected["bwd_idx"]]),
            (f"d{i}_img_latent", latents[-1:]),
        ):
            wanted = expected[key]
            error = (torch.cat(found) - wanted).norm() / wanted.norm()
            assert float(error) < 3e-6
    difference = to_uint8(edit.image, "truncate").int() - expected["final_image"].int()
    assert difference.abs().max() <= 1
    assert difference.count_nonzero() < 20
