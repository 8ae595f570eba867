"""The parts in float32, from recorded inputs."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from gooddrag import ddim
from gooddrag.backbones.adapter_files import load_adapter
from gooddrag.backbones.adapters import unstack
from gooddrag.denoising import PairedDenoising
from gooddrag.drag import DragOptimization
from gooddrag.events import EditCallback
from gooddrag.fitting import quiet_trainer
from gooddrag.geometry import Canvas
from gooddrag.lora import Draw, LoraAdaptation
from gooddrag.methods.latent_drag import LatentDrag
from gooddrag.reference import Pairs, Reference, reference_pass
from tests.official.traces import PARITY, method, needs_traces, trace

pytestmark = needs_traces
NAME = "cat_nolora"


@pytest.fixture(scope="module")
def editor() -> LatentDrag:
    return method(NAME, "float32")


@pytest.fixture(scope="module")
def canvas(editor: LatentDrag) -> Canvas:
    return Canvas.of(trace(NAME).sample.size, editor.backbone.pixels_per_latent, editor.fit)


@pytest.fixture(scope="module")
def text(editor: LatentDrag) -> torch.Tensor:
    return editor.backbone.embed([""])


@pytest.fixture(scope="module")
def pairs(editor: LatentDrag, canvas: Canvas) -> Pairs:
    return Pairs.of([trace(NAME).sample], canvas, "nearest", torch.device("cpu"))


@pytest.fixture(scope="module")
def references(
    editor: LatentDrag, text: torch.Tensor, pairs: Pairs, canvas: Canvas
) -> list[Reference]:
    """The reference pass from the recorded inverted latent, with patches of radius 6."""
    z_T = trace(NAME)["inv_latents"][-1:]
    return reference_pass(editor.backbone, z_T, text, editor.times, 8, pairs, canvas, r1=6)


def test_text_embedding(text: torch.Tensor) -> None:
    torch.testing.assert_close(text, trace(NAME)["text_embedding"], rtol=0, atol=1e-5)


def test_encoding(editor: LatentDrag, canvas: Canvas) -> None:
    z_0 = editor._encode([trace(NAME).sample], canvas)
    torch.testing.assert_close(z_0, trace(NAME)["z0"], rtol=0, atol=1e-5)


def test_points_and_mask(editor: LatentDrag, canvas: Canvas, pairs: Pairs) -> None:
    expected = trace(NAME)
    assert torch.equal(pairs.start, expected["handle_init"].float())
    assert torch.equal(pairs.targets, expected["target"].float())
    mask = editor._mask([expected.sample], canvas, expected["z0"])
    assert torch.equal(mask, expected["mask_latent"].float())


def test_inversion(editor: LatentDrag, text: torch.Tensor) -> None:
    expected = trace(NAME)
    entering: list[torch.Tensor] = []
    timesteps: list[int] = []

    def noise(z: torch.Tensor, t: int) -> torch.Tensor:
        entering.append(z)
        timesteps.append(t)
        return editor.backbone.noise(z, t, text)

    last = ddim.invert(expected["z0"], noise, editor.times)
    found = torch.cat([*entering[1:], last])
    assert timesteps == expected["inv_t"].tolist()
    torch.testing.assert_close(found, expected["inv_latents"], rtol=0, atol=1e-4)


def test_reference_features(references: list[Reference]) -> None:
    expected = trace(NAME)
    for found, patches, z_prev in zip(
        references, expected["F0_patch_r6"], expected["orig_step_output"], strict=True
    ):
        scale = float(patches.abs().max())
        torch.testing.assert_close(found.patches[0], patches, rtol=0, atol=1e-5 * scale)
        assert found.patches[1].all()
        torch.testing.assert_close(found.vectors, patches[:, :, 6, 6], rtol=0, atol=1e-5 * scale)
        torch.testing.assert_close(
            found.z_prev, z_prev.reshape(found.z_prev.shape), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("loop", [0, 1])
def test_gradient_of_each_loop(
    editor: LatentDrag, text: torch.Tensor, pairs: Pairs, canvas: Canvas, loop: int
) -> None:
    """The first gradient of a loop restarted from its recorded latent and handles."""
    expected = trace(NAME)
    references = reference_pass(
        editor.backbone,
        expected["inv_latents"][-1:],
        text,
        editor.times,
        loop + 1,
        pairs,
        canvas,
        editor.supervision.r1,
    )
    drag = DragOptimization(
        backbone=editor.backbone,
        z_T=expected.loop(loop, "latent_in"),
        mask=expected["mask_latent"].float(),
        pairs=pairs,
        references=references,
        schedule=editor.schedule,
        denoising=PairedDenoising(editor.backbone, text, editor.times, editor.attention),
        supervision=editor.supervision,
        tracking=editor.tracking,
        settings=editor.settings,
        canvas=canvas,
    )
    drag.step = loop
    first = expected["ms_i"].tolist().index(loop)
    drag.handles = expected["ms_handles"][first].float()
    feature_term, mask_term = drag._losses(*drag._forward())
    (feature_term + mask_term).sum().backward()
    feature_term, mask_term = feature_term.detach(), mask_term.detach()
    assert float(feature_term) == pytest.approx(float(expected["ms_drag_loss"][first]), rel=1e-5)
    assert float(feature_term + mask_term) == pytest.approx(
        float(expected["ms_loss"][first]), rel=1e-5
    )
    gradient = expected.loop(loop, "grad1")
    error = (drag.z.grad - gradient).norm() / gradient.norm()
    assert float(error) < 1e-4


def test_denoising_with_mutual_attention(editor: LatentDrag, text: torch.Tensor) -> None:
    """The steps after dragging, from the recorded latents."""
    expected = trace(NAME)
    denoising = PairedDenoising(editor.backbone, text, editor.times, editor.attention)
    unedited = expected["denoise_original"].reshape(38, 1, 4, 32, 32)
    edited = expected["denoise_latent"].reshape(38, 1, 4, 32, 32)
    last_dragged = [expected.info["masactrl_registered_after_denoise_calls"][0] // 2 - 1]
    for step in (3, 20, 37):
        found = denoising.step(unedited[step - 1], edited[step - 1], step, last_dragged)
        torch.testing.assert_close(found[0], unedited[step], rtol=0, atol=1e-4)
        torch.testing.assert_close(found[1], edited[step], rtol=0, atol=1e-4)


def test_official_lora_file_loads() -> None:
    adapter = load_adapter(PARITY / "cat_lora_lora")
    original = load_file(PARITY / "cat_lora_lora" / "pytorch_lora_weights.safetensors")
    assert len(adapter) == len(original) == 256
    for key, weight in original.items():
        assert torch.equal(adapter[peft_name(key)], weight)


class Losses(EditCallback):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_phase_advance(self, phase: str, loss: torch.Tensor | None = None) -> None:
        assert phase == "adapt"
        assert loss is not None
        self.found.append(float(loss))


def fit_lora(editor: LatentDrag, steps: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Some steps of the fit from the recorded weights, noise and latents."""
    expected = trace("cat_lora_training")
    backbone, info, losses = editor.backbone, expected.info["lora"], Losses()
    eps = torch.stack([expected["lora_noise_step1"], expected["lora_noise_step2"]])
    z_0 = torch.stack([expected["lora_model_input_step1"], expected["lora_model_input_step2"]])
    t = torch.tensor(info["timesteps"][:2])
    start = load_adapter(PARITY / "cat_lora_lora_init.safetensors")
    with backbone.adapted([start], trainable=True) as stacks:
        module = LoraAdaptation(
            backbone=backbone,
            weights=backbone.adapters.flat,
            mean=z_0,
            std=torch.zeros_like(z_0),
            text=expected["text_embedding"],
            lr=info["lr"],
            betas=(0.9, 0.999),
            weight_decay=1e-2,
        )
        draws = [Draw(torch.zeros_like(e), e, when) for e, when in zip(eps, t, strict=True)]
        trainer = quiet_trainer(torch.device("cpu"), [losses], max_steps=steps)
        trainer.fit(module, DataLoader(draws, batch_size=None))
        return unstack(stacks)[0], losses.found


def test_first_lora_step(editor: LatentDrag) -> None:
    adapter, losses = fit_lora(editor, steps=1)
    assert losses == pytest.approx(trace("cat_lora_training").info["lora"]["loss"][:1], rel=1e-6)
    for key, weight in load_adapter(PARITY / "cat_lora_lora_after1.safetensors").items():
        torch.testing.assert_close(adapter[key], weight, rtol=0, atol=5e-6)


def test_second_lora_step(editor: LatentDrag) -> None:
    expected = trace("cat_lora_training")
    adapter, losses = fit_lora(editor, steps=2)
    assert losses == pytest.approx(expected.info["lora"]["loss"][:2], rel=1e-5)
    recorded = {
        peft_name(key.removeprefix("lora_after2/")): expected[key]
        for key in expected.arrays
        if key.startswith("lora_after2/")
    }
    assert len(recorded) == 3
    for key, weight in recorded.items():
        difference = (adapter[key] - weight).abs()
        # Adam turns a tiny gradient's rounding into a whole step: few elements may differ
        assert float((difference < 2e-5).double().mean()) > 0.99


def peft_name(key: str) -> str:
    """The official code's name of a LoRA matrix in today's words."""
    key = key.removeprefix("unet.").replace("to_out_lora", "to_out.0_lora")
    key = key.replace(".processor.", ".").replace("_lora.down", ".lora_A")
    return key.replace("_lora.up", ".lora_B")
