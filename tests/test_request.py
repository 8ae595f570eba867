"""What is asked for: the picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from gooddrag.request import paths_of, sample_of, text_of

MASKS = {"black palette": ("P", 0), "black": ("L", 0), "grey": ("L", 9)}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_without_white_is_told(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mode, value = MASKS[name]
    Image.new("RGB", (32, 32), "teal").save(tmp_path / "a.png")
    Image.new(mode, (32, 32), value).save(tmp_path / "mask.png")
    files = {"image": str(tmp_path / "a.png"), "mask": str(tmp_path / "mask.png")}
    sample = sample_of(
        OmegaConf.create({**files, "points": [[2, 2], [9, 9]], "sample": None, "prompt": None})
    )
    assert sample.mask is not None
    told = capsys.readouterr().err
    assert told.startswith("the mask has no white pixel") == (not sample.mask.any()) == (value == 0)


def test_handles_where_nothing_may_change_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that are to move; a point that is pinned may well be there."""
    Image.new("RGB", (32, 32), "teal").save(tmp_path / "a.png")
    mask = Image.new("L", (32, 32), 255)
    mask.paste(0, (0, 0, 16, 32))
    mask.save(tmp_path / "mask.png")
    files = {"image": str(tmp_path / "a.png"), "mask": str(tmp_path / "mask.png")}
    points = [[20, 5], [9, 9], [4, 6], [9, 9], [3, 3], [3, 3]]
    sample_of(OmegaConf.create({**files, "points": points, "sample": None, "prompt": None}))
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("handle 2 at (4, 6) is to move, but the mask is black there")


def test_an_empty_path_is_no_path() -> None:
    """`output=$FORGOTTEN` would else be the folder where one is."""
    with pytest.raises(ValueError, match="output= is empty"):
        text_of(OmegaConf.create({"output": ""}), "output")
    assert text_of(OmegaConf.create({"output": None}), "output") is None


@pytest.mark.parametrize("given", ["", [""], ["a", ""]])
def test_no_empty_path_among_several(given: str | list[str]) -> None:
    with pytest.raises(ValueError, match="results= is empty"):
        paths_of(OmegaConf.create({"results": given}), "results", "which?")


def test_paths() -> None:
    cfg = OmegaConf.create({"results": ["a", "~/b"], "one": "c", "none": "???"})
    assert paths_of(cfg, "results", "which?") == [Path("a"), Path.home() / "b"]
    assert paths_of(cfg, "one", "which?") == [Path("c")]
    with pytest.raises(ValueError, match="which"):
        paths_of(cfg, "none", "which?")
