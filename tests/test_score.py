"""gooddrag score: somebody's folder of results, in every form, and what is missing from it."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from unittest import mock

import pytest

from gooddrag import cli
from gooddrag.bench.results import Results, shared_in
from gooddrag.data import read_image, to_uint8, write_png, write_sample
from gooddrag.data.sets import folder as folder_set
from tests import tiny

NAMES = ["output_image.png", "dragged_image.png", "edited.png"]


@pytest.fixture
def data(tmp_path) -> Path:
    """Four samples, one of them in a folder of its category."""
    for i, name in enumerate(("cat_0", "cat_1", "cat_2", "dogs/dog_0")):
        write_sample(tiny.make_sample(i), tmp_path / "data" / name)
    return tmp_path / "data"


def result(path: Path, seed: int, size=(64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, to_uint8(tiny.make_sample(seed + 10, size=size).image))


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Call the console script's function; gives status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["gooddrag", *words])
        with mock.patch.dict(os.environ), pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


def score(run, data, *words):
    given = ["data=folder", f"data.root={data}", "results=theirs", "trainer=cpu"]
    return run("score", *given, "tables.resamples=20", *words)


def records(output: Path) -> dict[str, dict]:
    (folder,) = output.glob("folder-*")
    paths = folder.rglob("record.json")
    return {json.loads(path.read_text())["name"]: json.loads(path.read_text()) for path in paths}


class TestFind:
    @pytest.mark.parametrize(
        "file",
        [
            *("cat_0.png", "cat_0.jpg", "cat_0/output_image.png", "cat_0/dragged_image.png"),
            *("cat_0/cat_0.png", "cat_0/edited.png"),
        ],
    )
    def test_every_form(self, tmp_path, file):
        result(tmp_path / file, 0)
        assert Results(folder=tmp_path, names=NAMES).find("cat_0") == tmp_path / file

    @pytest.mark.parametrize("file", ["dogs/dog_0.png", "dog_0.png", "dogs/dog_0/output_image.png"])
    def test_names_with_folders(self, tmp_path, file):
        result(tmp_path / file, 0)
        assert Results(folder=tmp_path, names=NAMES).find("dogs/dog_0") == tmp_path / file

    def test_none_and_two(self, tmp_path):
        results = Results(folder=tmp_path, names=NAMES)
        with pytest.raises(ValueError, match="no result for cat_0: looked for"):
            results.find("cat_0")
        result(tmp_path / "cat_0.png", 0)
        result(tmp_path / "cat_0" / "edited.png", 0)
        with pytest.raises(ValueError, match="two results for cat_0"):
            results.find("cat_0")

    def test_no_folder(self, tmp_path):
        with pytest.raises(ValueError, match="there is no folder"):
            Results(folder=tmp_path / "no", names=NAMES)

    def test_a_bare_name_that_several_share(self, tmp_path):
        """With the folder in front it is clear whose it is; so is a sample's without folders."""
        result(tmp_path / "cat_0.png", 0)
        result(tmp_path / "b" / "cat_0.png", 1)
        results = Results(folder=tmp_path, names=NAMES, shared=["cat_0"])
        with pytest.raises(ValueError, match=r"no result for a/cat_0: .*cat_0.png may be another"):
            results.find("a/cat_0")
        assert results.find("b/cat_0") == tmp_path / "b" / "cat_0.png"
        assert results.find("cat_0") == tmp_path / "cat_0.png"
        assert shared_in(["a/cat_0", "b/cat_0", "c/cat_1", "dog"]) == ["cat_0"]

    def test_strangers(self, tmp_path):
        for name in ("cat_0.png", "dogs/dog_0.png", "cat_9.png", "readme.txt"):
            result(tmp_path / name, 0)
        results = Results(folder=tmp_path, names=NAMES)
        assert results.strangers(["cat_0", "dogs/dog_0"]) == ["cat_9.png", "readme.txt"]


class TestScore:
    def test_mixed_forms_are_scored_as_they_are(self, run, data, tmp_path):
        theirs = ("cat_0.png", "cat_1/output_image.png", "cat_2/cat_2.png", "dogs/dog_0.png")
        for seed, name in enumerate(theirs):
            result(tmp_path / "theirs" / name, seed)
        status, out, err = score(run, data, "output=out")
        assert status == 0, err
        assert "theirs: 4 of 4 samples done" in out
        assert "without a score" not in out
        found = records(tmp_path / "out")
        for name, file in zip(("cat_0", "cat_1", "cat_2", "dogs/dog_0"), theirs, strict=True):
            folder = next((tmp_path / "out").glob("folder-*")) / name
            picture = read_image(tmp_path / "theirs" / file)
            assert (read_image(folder / "edited.png") == picture).all()
            assert found[name]["metrics"]["dai_1"] > 0
            assert found[name]["distance_after"] is None
        assert (tmp_path / "out" / "report" / "report.html").exists()

    def test_what_is_missing_or_wrong_is_named_and_counted(self, run, data, tmp_path):
        result(tmp_path / "theirs" / "cat_0.png", 0)
        result(tmp_path / "theirs" / "cat_1.png", 0, size=(32, 32))
        result(tmp_path / "theirs" / "cta_2.png", 0)
        status, out, _ = score(run, data, "output=out", "label=ours")
        assert status == 0
        assert "ours: 1 of 4 samples done" in out
        assert "without a score: 3 of 4 samples: cat_1, cat_2, dogs/dog_0" in out
        assert "belong to no sample: 1 files or folders: cta_2.png" in out
        found = records(tmp_path / "out")
        assert "no result for cat_2" in found["cat_2"]["error"]
        assert "32 x 32" in found["cat_1"]["error"]
        assert "1 / 4" in (tmp_path / "out" / "report" / "report.md").read_text()

    def test_results_are_read_anew(self, run, data, tmp_path):
        for seed in (0, 1):
            result(tmp_path / "theirs" / "cat_0.png", seed)
            score(run, data, "output=out", "data.select=cat_0")
            picture = read_image(tmp_path / "theirs" / "cat_0.png")
            (edited,) = (tmp_path / "out").glob("folder-*/cat_0/edited.png")
            assert (read_image(edited) == picture).all()

    def test_a_bare_name_that_several_share(self, run, data, tmp_path):
        """Also where only one of them is asked for."""
        write_sample(tiny.make_sample(5), data / "cats" / "dog_0")
        for name in ("dog_0.png", "cats/dog_0.png"):
            result(tmp_path / "theirs" / name, 0)
        status, out, err = score(run, data, "output=out", "data.select='*/dog_0'", "report=false")
        assert status == 0, err
        assert "without a score: 1 of 2 samples: dogs/dog_0" in out
        status, _, err = score(run, data, "output=out", "data.select=dogs/dog_0", "report=false")
        assert status == 2
        assert "no result for dogs/dog_0" in err

    def test_another_folder_of_one_name_replaces_nothing(self, run, data, tmp_path):
        words = ["data.select=cat_0", f"output={tmp_path / 'out'}", "report=false"]
        for folder in ("a", "b"):
            result(tmp_path / folder / "theirs" / "cat_0.png", ord(folder))
        os.chdir(tmp_path / "a")
        assert score(run, data, *words)[0] == 0
        before = records(tmp_path / "out")
        os.chdir(tmp_path / "b")  # where the same words mean another folder
        status, _, err = score(run, data, *words)
        assert status == 2
        assert re.search(r"holds the scores of .*/a/theirs: .* label=NAME", err), err
        assert records(tmp_path / "out") == before
        assert score(run, data, *words, "label=theirs_b")[0] == 0
        os.chdir(tmp_path)
        assert score(run, data, *words, "results=a/theirs")[0] == 0

    def test_nothing_found_is_an_error(self, run, data, tmp_path):
        (tmp_path / "theirs").mkdir()
        status, out, err = score(run, data)
        assert status == 2
        assert "no sample is done" in err.splitlines()[-1]
        assert "without a score: 4 of 4" in out

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["results=theirs"], "which data"),
            (["data=folder", "data.root=data"], "which results"),
            (["data=folder", "data.root=data", "results="], "results= is empty"),
            (["data=drag100", "results=theirs"], "data.root is missing"),
            (["data=folder", "data.root=data", "results=no"], "there is no folder no"),
        ],
    )
    def test_bad_input(self, run, data, words, message):
        status, _, err = run("score", *words)
        assert status == 2
        (line,) = [line for line in err.splitlines() if line]
        assert message in line

    def test_ours_and_theirs_in_one_report(self, run, data, tmp_path):
        for i in range(3):
            result(tmp_path / "theirs" / f"cat_{i}.png", i)
        score(run, data, "output=both", "report=false")
        ours = ["data=folder", f"data.root={data}", "method=identity", "trainer=cpu"]
        status, _, err = run("bench", *ours, "output=both", "tables.resamples=20")
        assert status == 0, err
        report = (tmp_path / "both" / "report" / "report.md").read_text()
        assert "| identity | 4 / 4 |" in report
        assert "| theirs | 3 / 4 |" in report


def test_every_sample_of_a_set_is_asked_for(data):
    assert folder_set(data).names == ("cat_0", "cat_1", "cat_2", "dogs/dog_0")
