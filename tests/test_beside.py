"""GScore of several folders of results, side by side, by the program and over HTTP on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gooddrag.bench.beside import Theirs, theirs_in
from gooddrag.data import to_uint8, write_png, write_sample
from tests import test_gscore, tiny
from tests.test_gscore import lines, server  # noqa: F401
from tests.test_report import fill, make_run
from tests.test_score import run  # noqa: F401


@pytest.fixture
def data(tmp_path) -> Path:
    for i in range(2):
        write_sample(tiny.make_sample(i), tmp_path / "data" / f"cat_{i}")
    return tmp_path / "data"


def results(folder: Path, factor: float, names=("cat_0", "cat_1")) -> None:
    """The sources, darkened."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        write_png(folder / f"{name}.png", to_uint8(tiny.make_sample(i).image * factor, "nearest"))


@pytest.fixture
def score(run, data, server, tmp_path):  # noqa: F811
    """`gooddrag score`, whose judge likes bright pictures."""
    server.answer = test_gscore.TestRepeats.by_brightness
    node = "metrics.gscore.judge"
    words = ["data=folder", "data.root=data", "metrics=gscore", "trainer=cpu", "cache=cache"]
    words += [f"endpoint@{node}.endpoint=local", f"{node}.endpoint.url={server.url}"]
    words += [f"{node}.endpoint.model=m", f"{node}.repeats=4", "output=out"]

    def score(*more):
        status, out, err = run("score", *words, "tables.resamples=9", *more)
        assert status == 0, err
        return out

    return score


def scores(output: Path) -> dict[tuple[str, str], dict[str, float]]:
    """The numbers by label and sample."""
    found = [json.loads(path.read_text()) for path in output.glob("*/*/record.json")]
    return {(record["label"], record["name"]): record.get("metrics") for record in found}


class TestSideBySide:
    def test_each_question_is_asked_once_for_all(self, score, server, tmp_path):  # noqa: F811
        for factor, name in ((0.9, "bright"), (0.6, "dim"), (0.3, "dark")):
            results(tmp_path / name, factor)
        score("results=[bright,dim,dark]")
        found = scores(tmp_path / "out")
        for i in range(2):
            order = [found[name, f"cat_{i}"]["gscore"] for name in ("dark", "dim", "bright")]
            assert order == [3.0, 4.0, 5.0]
        assert all(numbers["gscore_failed"] == 0 for numbers in found.values())
        assert len(server.asked) == 2 * 4
        asked = lines(tmp_path / "cache" / "gscore" / "answers.jsonl")
        assert all(sorted(line["order"]) == ["bright", "dark", "dim"] for line in asked)
        assert len({tuple(line["order"]) for line in asked}) > 1
        report = (tmp_path / "out" / "report" / "report.md").read_text()
        assert "| bright | 2 / 2 | 1 | 5 |" in report
        score("results=[bright,dim,dark]")
        assert len(server.asked) == 2 * 4
        score("results=[bright,dark]")
        assert len(server.asked) == 4 * 4

    def test_alone_if_asked_for(self, score, server, tmp_path):  # noqa: F811
        for factor, name in ((0.9, "bright"), (0.6, "dim")):
            results(tmp_path / name, factor)
        score("results=[bright,dim]", "beside=false")
        assert {numbers["gscore"] for numbers in scores(tmp_path / "out").values()} == {3.0}
        assert len(server.asked) == 2 * 2 * 4

    def test_who_has_no_picture_is_left_out(self, score, server, tmp_path):  # noqa: F811
        results(tmp_path / "bright", 0.9)
        results(tmp_path / "dim", 0.6, names=["cat_0"])
        out = score("results=[bright,dim]")
        assert "without a score: 1 of 2 samples: cat_1" in out
        found = scores(tmp_path / "out")
        assert found["bright", "cat_0"]["gscore"] == 4.0
        assert found["bright", "cat_1"]["gscore"] == 3.0  # alone

    def test_runs_of_the_benchmark(self, score, run, server, tmp_path):  # noqa: F811
        given = ["data=folder", "data.root=data", "trainer=cpu", "output=runs", "report=false"]
        assert run("bench", "-m", *given, "method=identity,paste", "seed=0,1")[0] == 0
        score("results=runs", "label=null")
        found = scores(tmp_path / "out")
        assert {label for label, _ in found} == {"identity", "paste"}
        asked = lines(tmp_path / "cache" / "gscore" / "answers.jsonl")
        assert all(sorted(line["order"]) == ["identity", "paste"] for line in asked)
        # both seeds show the same pictures, so that the questions are the same
        assert len(server.asked) == 2 * 4
        assert "| paste | 4 / 4 | 2 |" in (tmp_path / "out" / "report" / "report.md").read_text()


class TestFolders:
    def test_runs_are_called_as_in_reports(self, tmp_path):
        for changes in ([], ["method.J=1"]):
            fill(make_run(tmp_path, changes=changes, seed=3), [1.0] * 4)
        found = theirs_in([tmp_path, Path("theirs")], None, seed=7)
        assert {(t.label, t.seed) for t in found} == {
            ("gooddrag", 3),
            ("gooddrag method.J=1", 3),
            ("theirs", 7),
        }

    def test_one_label_for_one_folder(self, tmp_path):
        assert theirs_in([tmp_path], "ours", 0) == [Theirs("ours", tmp_path, 0)]
        with pytest.raises(ValueError, match="label=ours is for one folder of results, found 2"):
            theirs_in([tmp_path, tmp_path / "b"], "ours", 0)

    def test_names_differ(self, tmp_path):
        with pytest.raises(ValueError, match="two of these results are called b"):
            theirs_in([tmp_path / "a" / "b", tmp_path / "b"], None, 0)
