"""Packs: records without pictures, which are reported on and resumed like all others."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from gooddrag.bench.pack import pack, unpack
from gooddrag.bench.reading import Experiment, read_results
from gooddrag.bench.records import read_record
from gooddrag.bench.report import write_report
from tests.test_bench import bench, samples_of
from tests.test_report import fill, make_run, settings


def unpacked(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture
def output(tmp_path) -> Path:
    """Two seeds of one method and one of another, four samples each."""
    for seed in (0, 1):
        fill(make_run(tmp_path / "out", seed=seed), [1.0, 2.0, 3.0, ValueError("no")])
    fill(make_run(tmp_path / "out", "paste"), [0.5, 1.5, 2.5, None])
    return tmp_path / "out"


class TestPack:
    @pytest.mark.parametrize("suffix", ["tar.xz", "tar.gz", "tar"])
    def test_what_is_in_it(self, output, tmp_path, suffix):
        assert pack(output, tmp_path / f"a.{suffix}", pictures=2, side=16) == 11
        there = unpacked(tmp_path / f"a.{suffix}", tmp_path / "there")
        files = [path.relative_to(there) for path in there.rglob("*") if path.is_file()]
        assert sum(path.name == "record.json" for path in files) == 11
        assert sum(path.name == "run.json" for path in files) == 3
        # the first and the third sample, of each method with its lowest seed
        assert sum(path.name == "edited.jpg" for path in files) == 2 * 2
        assert sum(path.name == "points.jpg" for path in files) == 2
        assert {path.suffix for path in files} == {".json", ".jpg"}
        for path in there.rglob("*.jpg"):
            assert max(Image.open(path).size) == 16
        for path in there.rglob("record.json"):
            before = json.loads((output / path.relative_to(there)).read_text())
            assert json.loads(path.read_text()) == before | {"packed": True}

    def test_reports_are_the_same_but_for_pictures(self, output, tmp_path):
        pack(output, tmp_path / "a.tar.xz", pictures=2, side=16)
        there = unpacked(tmp_path / "a.tar.xz", tmp_path / "there")
        reports = []
        for folder in (output, there):
            write_report([folder], folder / "report", settings())
            reports.append(folder / "report")
        names = [sorted(path.name for path in report.iterdir()) for report in reports]
        assert names[0] == names[1]
        for name in names[0]:
            one, two = ((report / name).read_bytes() for report in reports)
            if name.endswith((".svg", ".md")) or name == "summary.csv":
                assert one == two
        assert (reports[1] / "report.html").read_text().count("<tr class=sample>") == 2

    def test_without_any_picture(self, output, tmp_path):
        pack(output, tmp_path / "a.tar.xz", pictures=0, side=16)
        there = unpacked(tmp_path / "a.tar.xz", tmp_path / "there")
        write_report([there], there / "report", settings())
        assert not list((there / "report").glob("sheet*"))
        assert "Samples beside" not in (there / "report" / "report.html").read_text()

    def test_parts_of_a_run_from_several_places_add_up(self, tmp_path):
        fill(make_run(tmp_path / "a"), [1.0, 2.0, None, None])
        fill(make_run(tmp_path / "b"), [None, ValueError("no"), 3.0, 4.0])
        folders = []
        for name in "ab":
            pack(tmp_path / name, tmp_path / f"{name}.tar.gz", pictures=1, side=16)
            folders.append(unpacked(tmp_path / f"{name}.tar.gz", tmp_path / f"{name}_there"))
        results = read_results(folders)
        assert [result.numbers["err"] for result in results] == [1.0, 2.0, 3.0, 4.0]

    def test_packing_a_pack_again_changes_nothing(self, output, tmp_path):
        pack(output, tmp_path / "a.tar", pictures=4, side=16)
        there = unpacked(tmp_path / "a.tar", tmp_path / "there")
        pack(there, tmp_path / "b.tar", pictures=4, side=16)
        again = unpacked(tmp_path / "b.tar", tmp_path / "again")
        for path in there.rglob("*.json"):
            other = again / path.relative_to(there)
            assert json.loads(other.read_text()) == json.loads(path.read_text())
        assert len(list(again.rglob("*.jpg"))) == len(list(there.rglob("*.jpg")))

    def test_bad_input(self, output, tmp_path):
        with pytest.raises(ValueError, match="no results below"):
            pack(tmp_path / "no", tmp_path / "a.tar.xz", pictures=1, side=16)
        with pytest.raises(ValueError, match=r"found a\.zip"):
            pack(output, tmp_path / "a.zip", pictures=1, side=16)


class TestUnpack:
    """Packs come together in one folder; what is there stays."""

    def test_into_an_empty_folder_it_is_what_tar_makes(self, output, tmp_path):
        pack(output, tmp_path / "a.tar.xz", pictures=2, side=16)
        assert unpack(tmp_path / "a.tar.xz", tmp_path / "own") == (11, 0)
        there = unpacked(tmp_path / "a.tar.xz", tmp_path / "there")
        found = [sorted(p.relative_to(f) for p in f.rglob("*")) for f in (tmp_path / "own", there)]
        assert found[0] == found[1]
        for path in there.rglob("*.json"):
            other = tmp_path / "own" / path.relative_to(there)
            assert json.loads(other.read_text()) == json.loads(path.read_text())
        assert unpack(tmp_path / "a.tar.xz", tmp_path / "own") == (0, 11)

    def test_parts_of_a_run_add_up(self, tmp_path):
        """Samples, experiments, and results in the place of failures."""
        no, other = ValueError("no"), ValueError("other")
        for name, part in (("a", [1.0, None, no, no]), ("b", [7.0, 2.0, 3.0, other])):
            fill(make_run(tmp_path / name, experiments={f"of {name}": "B9"}), part)
            pack(tmp_path / name, tmp_path / f"{name}.tar", pictures=0, side=16)
            unpack(tmp_path / f"{name}.tar", tmp_path / "out")
        (run,) = [path.parent for path in (tmp_path / "out").rglob("run.json")]
        assert json.loads((run / "run.json").read_text())["experiments"] == {
            "of a": "B9",
            "of b": "B9",
        }
        results = read_results([tmp_path / "out"])
        assert [result.numbers.get("err") for result in results] == [1.0, 2.0, 3.0, None]
        assert results[3].record["error"] == repr(no)

    def test_pictures_that_are_there_stay(self, output, tmp_path):
        pack(output, tmp_path / "a.tar", pictures=4, side=16)
        before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
        assert unpack(tmp_path / "a.tar", output) == (0, 11)
        assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize("damage", ["cut", "text", "other", "outside", "json", "later", "none"])
    def test_what_is_no_pack_leaves_nothing(self, output, tmp_path, damage):
        archive = tmp_path / "a.tar.gz"
        pack(output, archive, pictures=0, side=16)
        if damage == "cut":
            archive.write_bytes(archive.read_bytes()[:-300])
        elif damage == "text":
            archive.write_text("no archive at all")
        elif damage == "none":
            archive.unlink()
        else:
            name, content = {
                "other": ("readme.txt", "hello"),
                "outside": ("../run.json", "{}"),
                "json": ("a/run.json", "{"),
                "later": ("a/run.json", '{"format": "gooddrag-bench", "version": 99}'),
            }[damage]
            (tmp_path / "file").write_text(content)
            with tarfile.open(archive, "w:gz") as tar:
                tar.add(tmp_path / "file", arcname=name)
        with pytest.raises(ValueError, match=r"a\.tar\.gz"):
            unpack(archive, tmp_path / "there")
        assert not (tmp_path / "there").exists()
        assert not (tmp_path / "run.json").exists()


class TestResume:
    def test_packed_records_are_not_made_again(self, tmp_path):
        run, _ = bench(tmp_path / "out", samples_of(3))
        pack(tmp_path / "out", tmp_path / "a.tar.xz", pictures=1, side=16)
        there = unpacked(tmp_path / "a.tar.xz", tmp_path / "there")
        (there / run.folder.name / "s1" / "record.json").unlink()
        run, method = bench(there, samples_of(3))
        assert method.batches == [["s1"]]
        assert [read_record(run.folder_of(f"s{i}")).get("packed") for i in range(3)] == [
            True,
            None,
            True,
        ]

    def test_other_metrics_need_the_pictures(self, tmp_path):
        bench(tmp_path / "out", samples_of(1))
        pack(tmp_path / "out", tmp_path / "a.tar.xz", pictures=1, side=16)
        there = unpacked(tmp_path / "a.tar.xz", tmp_path / "there")
        assert bench(there, samples_of(1), metrics="own")[1].batches == [["s0"]]


class TestExperiments:
    """Which runs belong to an experiment, and what they are called there."""

    TABLE = Experiment("mine", ["identity", "B9", "B10"])

    def runs(self, tmp_path):
        for variant, config in (("B10", []), ("B9", ["method.B=9"]), ("identity", ["x"])):
            run = make_run(tmp_path, changes=config, experiments={"mine": variant, "all": "x"})
            fill(run, [1.0, 2.0, 3.0, 4.0])
        fill(make_run(tmp_path, changes=["other"], experiments={"all": "y"}), [1.0] * 4)
        return tmp_path

    def test_rows_are_the_variants_in_their_order(self, tmp_path):
        results = read_results([self.runs(tmp_path)], self.TABLE)
        labels = list(dict.fromkeys(result.label for result in results))
        assert labels == ["identity", "B9", "B10"]

    def test_a_run_of_several_keeps_all_their_names(self, tmp_path):
        run = make_run(tmp_path, experiments={"mine": "B10"})
        fill(run, [1.0] * 4)
        make_run(tmp_path, experiments={"yours": "official"}).save()
        about = json.loads((run.folder / "run.json").read_text())
        assert about["experiments"] == {"mine": "B10", "yours": "official"}

    def test_what_a_recipe_has_no_more_is_left_out(self, tmp_path):
        results = read_results([self.runs(tmp_path)], Experiment("mine", ["B9"]))
        assert {result.label for result in results} == {"B9"}

    def test_two_versions_of_the_code_are_two_rows(self, tmp_path):
        for code in "12":
            fill(make_run(tmp_path, code=code, experiments={"mine": "B9"}), [1.0] * 4)
        labels = {result.label for result in read_results([tmp_path], self.TABLE)}
        assert labels == {"B9 (1)", "B9 (2)"}

    def test_no_runs_of_it(self, tmp_path):
        with pytest.raises(ValueError, match="gooddrag bench -m experiment=theirs"):
            read_results([self.runs(tmp_path)], Experiment("theirs", ["B9"]))
