"""The import contracts of setup.cfg: they hold, and they would notice a breach."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of folder/setup.cfg against the package in folder/src."""
    return subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "src"), "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its contracts, to break."""
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    shutil.copytree(
        ROOT / "src" / "gooddrag",
        tmp_path / "src" / "gooddrag",
        ignore=shutil.ignore_patterns("assets", "__pycache__"),
    )
    return tmp_path


def test_contracts_hold() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("geometry.py", "import gooddrag.methods.latent_drag", "Imports point down only"),
        ("adapt.py", "import gooddrag.drag", "Imports point down only"),
        ("methods/base.py", "import gooddrag.metrics", "Imports point down only"),
        ("tracking.py", "import lightning", "The mathematics and DragWorld know tensors only"),
        ("methods/base.py", "import omegaconf", "Hydra lives in composition and jobs alone"),
        ("cli.py", "import hydra", "Hydra lives in composition and jobs alone"),
        ("data/folder.py", "import wandb", "W&B lives in callbacks alone"),
        ("drag.py", "import diffusers", "diffusers, transformers and PEFT live in backbones"),
    ],
)
def test_breaches_are_noticed(copy: Path, module: str, line: str, contract: str) -> None:
    path = copy / "src" / "gooddrag" / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    result = lint(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    broken = [text for text in result.stdout.splitlines() if " BROKEN" in text]
    assert any(text.startswith(contract) for text in broken), result.stdout


def test_a_module_without_a_layer_is_noticed(copy: Path) -> None:
    (copy / "src" / "gooddrag" / "stray.py").write_text("")
    result = lint(copy)
    assert result.returncode == 1
    assert "stray" in result.stdout


def test_every_package_is_installed() -> None:
    """What setup.cfg does not name is missing in all but editable installs."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = config["options"]["packages"].split()
    package = ROOT / "src" / "gooddrag"
    folders = [package, *(folder.parent for folder in package.rglob("__init__.py"))]
    found = {".".join(folder.relative_to(ROOT / "src").parts) for folder in folders}
    assert sorted(named) == sorted(found | {"gooddrag.conf"})
