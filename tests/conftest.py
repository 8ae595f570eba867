"""Shared by all tests: no network, no state outside the test's own folders."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

os.environ.setdefault("GOMP_SPINCOUNT", "3000")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("WANDB_MODE", "offline")

from pathlib import Path

import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # as in a shell's background; the programs that tests start and interrupt would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # of tests/test_kernels.py, read when Triton is imported

from gooddrag.backbones.stable_diffusion import StableDiffusion
from tests import tiny


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Every test sees the same numbers, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline in diffusers layout."""
    return tiny.make_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def backbone(tiny_folder: Path) -> StableDiffusion:
    """The tiny pipeline in float32."""
    return tiny.load(tiny_folder)


@pytest.fixture(scope="session")
def backbone64(tiny_folder: Path) -> StableDiffusion:
    """The tiny pipeline in float64."""
    return tiny.load(tiny_folder, "float64")


@pytest.fixture
def wandb_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """W&B writes below the test's own folder; no other test decides how, by variables or settings.

    W&B reads them once for each process, and keeps them until its teardown.
    """
    import wandb

    wandb.teardown()
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    yield
    wandb.teardown()
