"""The notebooks: stripped and without logic as they are kept, and each runs to its last picture."""

from __future__ import annotations

import ast
import base64
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)

# What is set after the cell of parameters, and the number of pictures that must come out.
DRAG = ["method.K=2", "method.B=1", "method.J=1", "method.steps=6", "adapt.steps=1"]
QUICK: dict[str, tuple[dict[str, Any], int]] = {
    "01_edit_one_image": ({"overrides": DRAG}, 3),
    "02_read_a_trajectory": ({"overrides": DRAG}, 4),
    "03_alternate_or_not": ({"overrides": DRAG}, 4),
    "04_score_anything": ({"count": 1, "overrides": ["method.steps=6"]}, 3),
}
LOGIC = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Lambda,
    ast.If,
    ast.While,
    ast.Try,
)
PARAMETERS = "parameters"


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code(path: Path) -> list[Any]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tree(source: str) -> ast.Module:
    """Of a cell; one that the shell gets has none."""
    return ast.parse("" if source.startswith("%%bash") else source)


def test_all_are_there() -> None:
    assert list(QUICK) == NAMES


@each
def test_outputs_are_stripped(path: Path) -> None:
    for cell in code(path):
        assert cell.outputs == []
        assert cell.execution_count is None
        assert set(cell.metadata) <= {"tags"}


@each
def test_short_and_without_logic(path: Path) -> None:
    sources = [cell.source for cell in code(path)]
    assert sum(len(source.splitlines()) for source in sources) <= 80
    found = [node for source in sources for node in ast.walk(tree(source))]
    assert not [ast.unparse(node) for node in found if isinstance(node, LOGIC)]


@each
def test_parameters_are_set_first_and_the_settings_here_are_among_them(path: Path) -> None:
    first, *others = code(path)
    assert first.metadata.tags == [PARAMETERS]
    assert not any(PARAMETERS in cell.metadata.get("tags", ()) for cell in others)
    targets = [node.targets[0].id for node in tree(first.source).body]
    assert set(QUICK[path.stem][0]) <= set(targets)


@each
def test_files_named_are_there(path: Path) -> None:
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert not [link for link in links if not (path.parent / link).exists()]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookClient]:
    """One kernel for all notebooks, since most of its start are imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOODDRAG_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        client = NotebookClient(nbformat.v4.new_notebook(), timeout=900)
        with client.setup_kernel():
            yield client


def run(book: Any, client: NotebookClient, folder: Path) -> None:
    """Run all cells in a folder, without what earlier notebooks have set.

    Raises:
        CellExecutionError: a cell raised.
    """
    book.cells.insert(0, nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {folder}"))
    client.nb = book
    client.reset_execution_trackers()
    for i, cell in enumerate(book.cells):
        client.execute_cell(cell, i)


def pictures(book: Any) -> list[Image.Image]:
    """What the cells show; Pillow offers some as PNG and as JPEG, which are one."""
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    data = [output.data for output in outputs if "data" in output]
    found = [of_one.get("image/png") or of_one.get("image/jpeg") for of_one in data]
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in found if text]


@each
def test_runs(path: Path, client: NotebookClient, tmp_path: Path) -> None:
    settings, count = QUICK[path.stem]
    book = read(path)
    lines = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    at = next(i for i, cell in enumerate(book.cells) if PARAMETERS in cell.metadata.get("tags", ()))
    book.cells.insert(at + 1, nbformat.v4.new_code_cell(lines))
    run(book, client, tmp_path)
    check(book, count)


@pytest.mark.slow
@each
def test_runs_as_it_stands(path: Path, client: NotebookClient, tmp_path: Path) -> None:
    book = read(path)
    run(book, client, tmp_path)
    check(book, QUICK[path.stem][1])


def check(book: Any, count: int) -> None:
    """Every cell ran, nothing complained, and the pictures show something."""
    ran = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in ran)
    streams = [output for cell in ran for output in cell.outputs if output.output_type == "stream"]
    assert not [stream.text for stream in streams if stream.name == "stderr"]
    shown = pictures(book)
    assert len(shown) == count
    for picture in shown:
        assert min(picture.size) >= 100
        assert any(low < high for low, high in picture.convert("RGB").getextrema())
