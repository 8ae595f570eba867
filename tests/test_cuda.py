"""What a CUDA device changes, and what it must not change. Skipped where there is none."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gooddrag import load_method
from gooddrag.adapt import LoraAdapter
from gooddrag.backbones.engine import Engine
from gooddrag.backbones.stable_diffusion import StableDiffusion
from gooddrag.data.world import world_sample
from gooddrag.events import Phases
from gooddrag.methods.latent_drag import LatentDrag
from gooddrag.schedule import aldd
from gooddrag.types import DragSample
from tests import tiny
from tests.test_drag import make_editor
from tests.test_methods import load
from tests.tiny import make_sample

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")

HALVES = ("bfloat16", "float16")
LORA: dict[str, Any] = {
    "cache": None,
    "rank": 4,
    "steps": 5,
    "batch_size": 2,
    "lr": 5e-4,
    "betas": (0.9, 0.999),
    "weight_decay": 1e-2,
    "targets": ("to_q", "to_k", "to_v", "to_out.0"),
    "crop": "once",
    "posterior": "sample",
    "seed": 0,
}


@pytest.fixture(scope="module")
def on_cuda(tiny_folder: Path) -> partial[StableDiffusion]:
    """Loads the tiny pipeline on the device, in a given precision."""
    return partial(tiny.load, tiny_folder, device="cuda")


def mini(*overrides: str) -> LatentDrag:
    editor: LatentDrag = load_method("gooddrag", ["backbone.device=cuda", *overrides])
    return editor


@pytest.mark.parametrize("dtype", ["float64", "float32", *HALVES])
def test_every_engine_gives_the_same_step(on_cuda: partial[StableDiffusion], dtype: str) -> None:
    plain = tiny.engine_of("plain")
    assert_same_step(on_cuda, dtype, tiny.engine_of("default"), replace(plain, graphs=True))


def test_compiled_blocks_give_the_same_step(on_cuda: partial[StableDiffusion]) -> None:
    with tiny.something_compiled():
        assert_same_step(on_cuda, "bfloat16", replace(tiny.engine_of("default"), compile=True))


def assert_same_step(on_cuda: partial[StableDiffusion], dtype: str, *engines: Engine) -> None:
    """Loss and gradient from the same latent, held against those of nothing switched on."""
    z = torch.randn(2, 4, 8, 8, device="cuda")
    found = []
    for engine in (tiny.engine_of("plain"), *engines):
        backbone = on_cuda(dtype=dtype, engine=engine)
        text = backbone.embed(["", ""])
        for _ in range(2):  # the second replays what the first recorded
            leaf = z.to(backbone.latent_dtype).requires_grad_()
            eps, features = backbone.noise_and_features(leaf, 401, text)
            loss = (eps - leaf).abs().mean() + features.square().mean()
            (gradient,) = torch.autograd.grad(loss, leaf)
            found.append((loss.detach().clone(), gradient.clone()))
    tolerance = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}[dtype]
    for loss, gradient in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=tolerance, atol=0)
        apart = (gradient - found[0][1]).norm() / found[0][1].norm()
        assert apart < (tolerance if dtype in ("float64", "float32") else 0.2)


def test_many_models_one_after_another(on_cuda: partial[StableDiffusion]) -> None:
    """More recordings than torch has streams; memory between them is given back."""
    z, first = torch.randn(1, 4, 8, 8, device="cuda"), None
    for _ in range(12):
        backbone = on_cuda(dtype="float32")
        text = backbone.embed([""])
        for size in (1, 2, 3, 2, 1):
            found = backbone.noise(z.repeat(size, 1, 1, 1), 401, text)[:1]
            torch.cuda.empty_cache()
            first = found if first is None else first
            torch.testing.assert_close(found, first, rtol=1e-4, atol=1e-4)


class TestDoublePrecision:
    """In float64 a whole edit does not depend on the machine more than rounding explains."""

    def test_an_edit_is_the_cpu_s(
        self, backbone64: StableDiffusion, on_cuda: partial[StableDiffusion]
    ) -> None:
        sample, adapt = make_sample(seed=1, size=(61, 70)), LoraAdapter(**LORA)
        here, there = (
            make_editor(backbone, aldd(6, 2), adapt=adapt)([sample])[0]
            for backbone in (backbone64, on_cuda("float64"))
        )
        assert len(here.trajectory.trackings) == len(there.trajectory.trackings)
        for mine, yours in zip(here.trajectory.trackings, there.trajectory.trackings, strict=True):
            assert torch.equal(mine.handles, yours.handles)
        for mine, yours in zip(
            here.trajectory.operations, there.trajectory.operations, strict=True
        ):
            assert mine.losses == pytest.approx(yours.losses, rel=1e-6)
        assert (here.image - there.image).abs().max() < 1e-5

    def test_a_batch_is_its_samples(self, on_cuda: partial[StableDiffusion]) -> None:
        samples = [make_sample(seed=i, pairs=i) for i in (1, 3)]
        editor = make_editor(on_cuda("float64"), aldd(4, 2), adapt=LoraAdapter(**LORA))
        together = editor(samples)
        alone = [editor([sample])[0] for sample in samples]
        for one, other in zip(together, alone, strict=True):
            assert torch.equal(one.handles, other.handles)
            assert (one.image - other.image).abs().max() < 1e-6

    @pytest.mark.parametrize("likely", [0.0, 1e9])
    def test_gooddrag_plus_is_the_cpu_s(self, tiny_folder: Path, likely: float) -> None:
        """A batch of two, dragged and held for long: what is chosen, warped and taken."""
        samples = [make_sample(seed=1), make_sample(seed=2, pairs=1)]
        both = (
            load("gooddrag_plus", tiny_folder, f"method.likely={likely}", f"backbone.device={d}")
            for d in ("cpu", "cuda")
        )
        here, there = (editor(samples) for editor in both)
        for mine, yours in zip(here, there, strict=True):
            assert len(mine.trajectory.operations) == (0 if likely else 3)
            assert len(yours.trajectory.operations) == len(mine.trajectory.operations)
            assert torch.equal(mine.handles.cpu(), yours.handles.cpu())
            assert (mine.image - yours.image).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", HALVES)
class TestHalfPrecision:
    def test_the_gradient_points_where_float32_s_does(self, dtype: str) -> None:
        """From the same latent; the cosine, since L1 makes single elements jump."""
        sample, gradients = world_sample("test", 0, 6), []
        z: torch.Tensor | None = None
        for name in ("float32", dtype):
            backbone = mini(f"backbone.dtype={name}", "adapt=none").backbone
            text = backbone.embed([""])
            z = backbone.encode(sample.image[None])[0] if z is None else z
            leaf = z.clone().requires_grad_()
            eps, features = backbone.noise_and_features(leaf, 401, text)
            loss = features.diff(dim=-1).abs().mean() + eps.abs().mean()
            (gradient,) = torch.autograd.grad(loss, leaf)
            assert gradient.dtype == torch.float32
            gradients.append(gradient.flatten())
        assert torch.cosine_similarity(*gradients, dim=0) > 0.95

    def test_latents_and_adapters_stay_float32(self, dtype: str) -> None:
        editor = mini(f"backbone.dtype={dtype}", "adapt.cache=null", "adapt.steps=3")
        sample = world_sample("test", 0, 6)
        adapters = editor.adapt(editor.backbone, [sample], Phases([]))
        assert adapters is not None
        assert {weight.dtype for weight in adapters[0].values()} == {torch.float32}
        assert any(weight.any() for key, weight in adapters[0].items() if "lora_B" in key)
        mean, _ = editor.backbone.encode(sample.image[None])
        assert mean.dtype == torch.float32

    def test_an_edit_moves_the_handle(self, dtype: str) -> None:
        editor = mini(f"backbone.dtype={dtype}", "adapt=none", "method.K=20", "method.B=5")
        sample = world_sample("test", 0, 6)
        edit = editor([sample])[0]
        before = (sample.handles - sample.targets).norm(dim=1).mean()
        after = (edit.handles.cpu() - sample.targets).norm(dim=1).mean()
        assert after < before
        assert torch.isfinite(edit.image).all()
        assert edit.peak_memory > 1e6


class TestOutOfMemory:
    """With a real limit on the process's share of the device."""

    @pytest.fixture
    def large(self) -> DragSample:
        return make_sample(seed=1, size=(1024, 1024))

    @pytest.fixture
    def limit(self) -> Iterator[Any]:
        total = torch.cuda.get_device_properties(0).total_memory
        yield lambda used: torch.cuda.set_per_process_memory_fraction(used / total)
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()

    def editor(self, low_memory: bool = False) -> LatentDrag:
        return mini(
            "adapt=none",
            "method.K=1",
            "method.steps=4",
            "backbone.dtype=bfloat16",
            f"backbone.low_memory={str(low_memory).lower()}",
        )

    def reserved(self, editor: LatentDrag, sample: DragSample) -> int:
        gc.collect()  # graphs of editors before this one
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        editor([sample])
        return torch.cuda.max_memory_reserved()

    def test_one_retry_with_less_memory(self, large: DragSample, limit: Any) -> None:
        most = self.reserved(self.editor(), large)
        least = self.reserved(self.editor(low_memory=True), large)
        assert least < 0.7 * most
        editor = self.editor()
        gc.collect()
        torch.cuda.empty_cache()
        limit(int(1.1 * least))
        edit = editor([large])[0]
        assert editor.backbone.low_memory
        assert torch.isfinite(edit.image).all()

    def test_the_command_names_the_knob(self, tmp_path: Path) -> None:
        """A large picture on a device whose memory another program holds."""
        picture = tmp_path / "large.png"
        Image.new("RGB", (3072, 3072), "teal").save(picture)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        held = torch.empty(free - 1_500_000_000, dtype=torch.uint8, device="cuda")
        try:
            done = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    "from gooddrag.cli import main; main()",
                    "edit",
                    f"image={picture}",
                    "points=[[1000,1000],[1100,1000]]",
                    "adapt=none",
                    f"output={tmp_path / 'edit'}",
                    f"cache={tmp_path / 'cache'}",
                    "callbacks=quiet",
                ],
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            del held
            torch.cuda.empty_cache()
        assert done.returncode == 2, done.stderr
        assert "memory" in done.stderr
        assert "Traceback" not in done.stderr
        record = json.loads((tmp_path / "edit" / "record.json").read_text())
        assert record["status"] == "failed"
