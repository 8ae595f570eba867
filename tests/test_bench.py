"""The benchmark: records, what is resumed, what failure and an end at any moment leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

import gooddrag
from gooddrag import cli
from gooddrag.bench.records import Run, code_version, read_record, read_run, rows_of
from gooddrag.bench.report import Reporter
from gooddrag.bench.runner import Benchmark, run_benchmark
from gooddrag.bench.tables import Settings
from gooddrag.bench.tasks import Rules
from gooddrag.composition import composer, instantiate, plain
from gooddrag.data import read_image, write_sample
from gooddrag.data.dragset import DragSet
from gooddrag.data.sets import folder as folder_set
from gooddrag.data.sets import world
from gooddrag.methods.identity import Identity
from gooddrag.metrics.accuracy import patch_errors
from gooddrag.metrics.base import SampleMean
from gooddrag.metrics.score import collection
from tests import test_callbacks, tiny
from tests.ports import free_ports

SWEEPS = Path(__file__).parents[1] / "experiments" / "sweeps"
PROGRAM = Path(sys.executable).with_name("gooddrag")
FAST = ["backbone=folder", "backbone.resolution=64", "backbone.dtype=float32", "report=false"]
DRAG = ["method.steps=4", "method.K=2", "method.B=1", "method.J=1"]
LORA = ["adapt.steps=2", "adapt.batch_size=1"]
RULES = {"batch": 1, "workers": 0, "existing": "resume", "retry_failed": False}
RULES |= {"rounding": "nearest"}
# What may differ between two runs of the same edits.
TIMES = ("started", "finished", "peak_memory", "folder", "batch", "adapt_cached", "adapt_steps")


def compose(root: str, words: list[str]):
    with composer() as composed:
        return composed(root, words)


def trainer(callbacks=()):
    return instantiate(compose("bench", ["trainer=cpu"]).trainer, callbacks=list(callbacks))


class Brightness(SampleMean):
    """A metric of this test's own."""

    def __init__(self):
        super().__init__(["brightness"])

    def update(self, edited):
        self.add({"brightness": edited.mean()})


def metrics_of(name: str):
    if name == "own":
        return {"own": Brightness()}
    return instantiate(compose("bench", ["data=folder", "data.root=x", f"metrics={name}"]).metrics)


class Recorder(Identity):
    """The identity that remembers its batches, and fails as it is told."""

    def __init__(self, fail=None):
        self.fail, self.batches = fail, []

    def _edit(self, samples, seed, phases):
        self.batches.append([sample.name for sample in samples])
        if self.fail is not None:
            self.fail(samples)
        return super()._edit(samples, seed, phases)


def samples_of(count: int = 3, sizes=((64, 64),)) -> DragSet:
    made = {}
    for i in range(count):
        sample = tiny.make_sample(i, size=sizes[i % len(sizes)])
        made[f"s{i}"] = replace(sample, name=f"s{i}", category="even" if i % 2 == 0 else "odd")
    return DragSet(made, lambda sample: sample)


def bench(
    output,
    samples=None,
    method=None,
    metrics="default",
    seed=0,
    code="test",
    label="identity",
    heard=(),
    **rules,
):
    """Run it in this process; gives the run and the method."""
    samples, method = samples or samples_of(), method or Recorder()
    run = Run(
        output=Path(output),
        data="made",
        method="identity",
        label=label,
        changes=[],
        config={"_target_": "x"},
        seed=seed,
        code=code,
        names=samples.names,
        experiments={},
    )
    benchmark = Benchmark(
        samples,
        run,
        make_method=lambda device: method,
        make_metrics=lambda device: collection(metrics_of(metrics)),
        metrics_config={"which": metrics},
        rules=Rules(**RULES | rules),
    )
    run_benchmark(trainer(heard), benchmark)
    return run, method


def statuses(run: Run) -> dict[str, str]:
    return {row["name"]: row["status"] for row in rows_of(run.folder, run.names)}


def table(run_folder: Path) -> list[dict]:
    """All rows of a run without what differs from time to time."""
    rows = rows_of(run_folder, read_run(run_folder)["names"])
    return [
        {k: v for k, v in row.items() if k not in TIMES and not k.startswith("seconds")}
        for row in rows
    ]


class TestRecords:
    def test_a_sample_leaves_all_that_is_known_of_it(self, tmp_path):
        samples = samples_of()
        run, method = bench(tmp_path, samples, seed=3)
        assert method.batches == [["s0"], ["s1"], ["s2"]]
        record = read_record(run.folder_of("s1"))
        expected = {"status": "done", "name": "s1", "category": "odd", "seed": 3, "code": "test"}
        assert {key: record[key] for key in expected} == expected
        assert record["sample_sha256"]
        assert record["versions"]["torch"] == torch.__version__
        assert record["seconds_total"] > 0
        assert record["peak_memory"] > 0
        assert record["gradient_steps"] == 0
        assert record["edited_handles"] == samples[1].handles.tolist()
        picture = read_image(run.folder_of("s1") / "edited.png")
        assert (picture - samples[1].image).abs().max() <= 0.5 / 255 + 1e-6
        sample = samples[1]
        errors = patch_errors(sample.image, picture, sample.handles, sample.targets, 5)
        assert record["metrics"]["dai_5"] == pytest.approx(float(errors.mean()))
        assert (tmp_path / "samples" / record["sample_sha256"][:16] / "points.png").exists()

    def test_the_table_has_a_row_for_each_record(self, tmp_path):
        run, _ = bench(tmp_path)
        lines = (run.folder / "table.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["name"] for row in rows] == ["s0", "s1", "s2"]
        assert all("dai_1" in row and "traceback" not in row for row in rows)

    def test_truth_is_scored_and_shown(self, tmp_path):
        samples = world("test", 0, 0, 2, 64)
        run, _ = bench(tmp_path, samples, metrics="truth_error")
        for row in rows_of(run.folder, run.names):
            assert 0 < row["mae_inside"] < 1
            assert (tmp_path / "samples" / row["sample_sha256"][:16] / "truth.png").exists()

    def test_batches_are_of_one_size(self, tmp_path):
        samples = samples_of(7, sizes=((64, 64), (64, 48)))
        run, method = bench(tmp_path, samples, batch=2)
        assert method.batches == [["s0", "s2"], ["s1", "s3"], ["s4", "s6"], ["s5"]]
        assert set(statuses(run).values()) == {"done"}
        assert read_record(run.folder_of("s0"))["batch"] == 2

    def test_code_version_is_of_the_sources_and_the_weights(self, tmp_path, monkeypatch):
        """Of what an edit is made by: neither of tables nor of the commands."""
        package = Path(gooddrag.__file__).parent
        versions = [code_version()]
        for changed, name in enumerate(
            ("drag.py", "assets/mini/vae/config.json", "bench/tables.py", "commands.py")
        ):
            shutil.copytree(package, tmp_path / str(changed), symlinks=True)
            with open(tmp_path / str(changed) / name, "ab") as file:
                file.write(b" ")
            where = {"gooddrag": tmp_path / str(changed)}
            monkeypatch.setattr("gooddrag.bench.records.files", where.__getitem__)
            versions.append(code_version.__wrapped__())
        assert all("+" in version for version in versions)
        assert [version == versions[0] for version in versions] == [True, False, False, True, True]

    @pytest.mark.parametrize(
        ("rules", "message"),
        [({"existing": "keep"}, "resume, overwrite, refuse; found 'keep'"), ({"batch": 0}, "0")],
    )
    def test_unknown_rules(self, rules, message):
        with pytest.raises(ValueError, match=message):
            Rules(**RULES | rules)


class TestResume:
    def test_valid_records_are_skipped(self, tmp_path):
        run, _ = bench(tmp_path)
        before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("s*/*")}
        _, method = bench(tmp_path)
        assert method.batches == []
        assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("s*/*")} == before

    def test_another_seed_and_another_code_have_their_own_folders(self, tmp_path):
        runs = [bench(tmp_path, seed=s, code=c)[0] for s, c in ((0, "a"), (1, "a"), (0, "b"))]
        assert len({run.folder for run in runs}) == 3
        assert all(statuses(run) == {f"s{i}": "done" for i in range(3)} for run in runs)

    def test_another_label_is_another_run(self, tmp_path):
        """Two rows of one method, say in batches and one by one, keep their own edits."""
        labels = ("identity", "in_batches", "one_by_one")
        runs = [bench(tmp_path, label=label) for label in labels]
        assert all(method.batches for _, method in runs)
        assert [read_run(run.folder)["label"] for run, _ in runs] == list(labels)
        assert bench(tmp_path, label="one_by_one")[1].batches == []

    def test_more_samples_are_added(self, tmp_path):
        bench(tmp_path, samples_of(2))
        run, method = bench(tmp_path, samples_of(4))
        assert method.batches == [["s2"], ["s3"]]
        bench(tmp_path, samples_of(1))
        assert read_run(run.folder)["names"] == ["s0", "s1", "s2", "s3"]

    def test_overwrite_does_all_again(self, tmp_path):
        bench(tmp_path)
        run, method = bench(tmp_path, existing="overwrite")
        assert method.batches == [["s0"], ["s1"], ["s2"]]
        rows = [json.loads(line) for line in (run.folder / "table.jsonl").open()]
        assert [row["name"] for row in rows] == ["s0", "s1", "s2"]  # none of those before

    def test_refuse(self, tmp_path):
        bench(tmp_path)
        with pytest.raises(ValueError, match="holds this run already"):
            bench(tmp_path, existing="refuse")

    @pytest.mark.parametrize("damage", ["half a record", "no picture"])
    def test_damaged_results_are_made_again(self, tmp_path, damage):
        run, _ = bench(tmp_path)
        if damage == "no picture":
            (run.folder_of("s1") / "edited.png").unlink()
        else:
            path = run.folder_of("s1") / "record.json"
            path.write_bytes(path.read_bytes()[:50])
        run, method = bench(tmp_path)
        assert method.batches == [["s1"]]
        assert statuses(run)["s1"] == "done"

    def test_other_metrics_are_computed_from_the_files(self, tmp_path):
        bench(tmp_path)
        run, method = bench(tmp_path, metrics="own")
        assert method.batches == []
        picture = read_image(run.folder_of("s0") / "edited.png")
        metrics = read_record(run.folder_of("s0"))["metrics"]
        assert metrics == {"brightness": pytest.approx(float(picture.mean()))}

    def test_another_picture_of_the_same_name_is_refused(self, tmp_path):
        bench(tmp_path)
        other = DragSet({"s0": tiny.make_sample(9)}, lambda sample: sample)
        with pytest.raises(ValueError, match="another picture of that name"):
            bench(tmp_path, other)


class TestFailure:
    def fail_for(self, name, error=ValueError):
        def fail(samples):
            if name in [sample.name for sample in samples]:
                raise error("no such luck")

        return fail

    def test_it_is_recorded_and_the_run_goes_on(self, tmp_path):
        run, _ = bench(tmp_path, method=Recorder(self.fail_for("s1")))
        assert statuses(run) == {"s0": "done", "s1": "failed", "s2": "done"}
        record = read_record(run.folder_of("s1"))
        assert record["error"] == "ValueError: no such luck"
        assert record["failed_in"] == "edit"
        assert "Traceback" in record["traceback"]
        assert "metrics" not in record

    def test_it_is_tried_again_only_when_asked(self, tmp_path):
        bench(tmp_path, method=Recorder(self.fail_for("s1")))
        assert bench(tmp_path)[1].batches == []
        run, method = bench(tmp_path, retry_failed=True)
        assert method.batches == [["s1"]]
        assert set(statuses(run).values()) == {"done"}

    def test_in_a_batch_it_takes_no_other_with_it(self, tmp_path):
        run, method = bench(tmp_path, method=Recorder(self.fail_for("s1")), batch=3)
        assert method.batches == [["s0", "s1", "s2"], ["s0"], ["s1"], ["s2"]]
        assert statuses(run) == {"s0": "done", "s1": "failed", "s2": "done"}

    def test_a_batch_without_memory_is_edited_one_by_one(self, tmp_path):
        def fail(samples):
            if len(samples) > 1 or samples[0].name == "s2":
                raise torch.OutOfMemoryError("CUDA out of memory")

        run, method = bench(tmp_path, method=Recorder(fail), batch=2)
        assert method.batches == [["s0", "s1"], ["s0"], ["s1"], ["s2"]]
        assert statuses(run) == {"s0": "done", "s1": "done", "s2": "failed"}

    def test_alone_means_with_low_memory(self, tmp_path, tiny_folder, monkeypatch):
        method = method_of(tiny_folder, tmp_path)
        edit, seen = method._edit, []

        def short_of_memory(samples, seed, phases):
            seen.append((len(samples), method.backbone.low_memory))
            if len(samples) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return edit(samples, seed, phases)

        monkeypatch.setattr(method, "_edit", short_of_memory)
        run, _ = bench(tmp_path / "out", samples_of(2), method, batch=2)
        assert seen == [(2, False), (2, True), (1, True), (1, True)]
        assert all(row["low_memory"] for row in rows_of(run.folder, run.names))
        assert set(statuses(run).values()) == {"done"}

    def test_a_lost_device_ends_the_run(self, tmp_path):
        def fail(samples):
            if samples[0].name == "s1":
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

        with pytest.raises(RuntimeError, match="illegal"):
            bench(tmp_path, method=Recorder(fail))
        run, method = bench(tmp_path)
        assert method.batches == [["s2"]]
        assert statuses(run) == {"s0": "done", "s1": "failed", "s2": "done"}

    def test_of_a_batch_on_a_lost_device_what_was_done_is_kept(self, tmp_path):
        def fail(samples):
            names = [sample.name for sample in samples]
            if len(names) > 1:
                raise ValueError("one of them is wrong")
            if names == ["s1"]:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

        with pytest.raises(RuntimeError, match="illegal"):
            bench(tmp_path, method=Recorder(fail), batch=3)
        run, method = bench(tmp_path)
        assert method.batches == [["s2"]]
        assert statuses(run) == {"s0": "done", "s1": "failed", "s2": "done"}

    def test_metrics_that_cannot_be_loaded_end_the_run(self, tmp_path):
        with pytest.raises(ValueError, match="metric"):
            bench(tmp_path, metrics="nothing")

    def test_a_metric_that_fails_keeps_the_edit(self, tmp_path):
        run, _ = bench(tmp_path, metrics="truth_error")  # there is no truth
        assert set(statuses(run).values()) == {"failed"}
        assert read_record(run.folder_of("s0"))["failed_in"] == "score"
        run, method = bench(tmp_path, metrics="own")
        assert method.batches == []
        assert set(statuses(run).values()) == {"done"}

    def test_a_sample_that_cannot_be_read(self, tmp_path):
        for i in range(2):
            write_sample(tiny.make_sample(i), tmp_path / "data" / f"cat_{i}")
        points = tmp_path / "data" / "cat_1" / "points.json"
        content = points.read_text()
        points.write_text("[]")
        run, method = bench(tmp_path / "out", folder_set(tmp_path / "data"))
        assert statuses(run) == {"cat_0": "done", "cat_1": "failed"}
        assert read_record(run.folder_of("cat_1"))["failed_in"] == "read"
        assert bench(tmp_path / "out", folder_set(tmp_path / "data"))[1].batches == []
        points.write_text(content)
        run, method = bench(tmp_path / "out", folder_set(tmp_path / "data"))
        assert method.batches == [["cat_1"]]
        assert set(statuses(run).values()) == {"done"}


def method_of(tiny_folder: Path, cache: Path, *words: str):
    cfg = compose(
        "bench", [*FAST, *DRAG, *LORA, f"backbone.path={tiny_folder}", f"cache={cache}", *words]
    )
    return instantiate(cfg.editor)


class TestMethods:
    def test_what_a_latent_edit_leaves(self, tmp_path, tiny_folder):
        run, _ = bench(tmp_path, samples_of(1), method_of(tiny_folder, tmp_path))
        record = read_record(run.folder_of("s0"))
        assert (record["gradient_steps"], record["operations"], record["adapt_steps"]) == (2, 2, 2)
        assert {"adapt", "invert", "drag", "denoise", "decode"} <= set(record["seconds"])
        assert sum(record["seconds"].values()) <= record["seconds_total"]
        assert record["adapt_cached"] is False
        way = json.loads((run.folder_of("s0") / "trajectory.json").read_text())
        assert len(way["operations"]) == 2
        run, _ = bench(tmp_path, samples_of(1), method_of(tiny_folder, tmp_path), seed=1)
        assert read_record(run.folder_of("s0"))["adapt_cached"] is True

    def test_a_cached_lora_is_no_record_where_each_is_to_be_trained(self, tmp_path, tiny_folder):
        """Seconds hold the training only then; where the cache is does not matter."""

        run, _ = bench(tmp_path, samples_of(1))

        def key(cache):
            return replace(run, config={"adapt": {"cache": cache, "steps": 2}}).key

        assert key("here") == key("there") != key(None)

    def test_batches_change_no_more_than_rounding(self, tmp_path, tiny_folder):
        words = ["backbone.dtype=float64"]
        runs = [
            bench(
                tmp_path / str(n), samples_of(3), method_of(tiny_folder, tmp_path, *words), batch=n
            )
            for n in (1, 3)
        ]
        for name in ("s0", "s1", "s2"):
            one, three = (read_image(run.folder_of(name) / "edited.png") for run, _ in runs)
            assert (one - three).abs().max() <= 1.01 / 255


@pytest.mark.usefixtures("wandb_offline")
class TestWandb:
    def reporter(self, output) -> Reporter:
        tables = plain(compose("bench", ["tables.resamples=9"]).tables)
        return Reporter(output, Settings(**tables))

    def rows(self, folder: Path) -> list[list]:
        """The rows of all increments of the table that an offline run has written."""
        (run,) = folder.glob("wandb/offline-run-*")
        paths = sorted((run / "files" / "media" / "table").glob("samples_*"), key=os.path.getmtime)
        contents = [json.loads(path.read_text()) for path in paths]
        columns = contents[0]["columns"]
        return [dict(zip(columns, row, strict=True)) for c in contents for row in c["data"]]

    def artifacts(self, folder: Path) -> list[tuple[str, list[str]]]:
        """(type, files) of what an offline run has kept, in order."""
        (run,) = folder.glob("wandb/offline-run-*")
        kept = [
            record.artifact
            for record in test_callbacks.wandb_records(run)
            if record.WhichOneof("record_type") == "artifact"
        ]
        return [(a.type, [entry.path for entry in a.manifest.contents]) for a in kept]

    def test_an_offline_run_is_read_back(self, tmp_path):
        from gooddrag.callbacks.wandb_logger import WandbBench

        def fail(samples):
            if samples[0].name == "s1":
                raise ValueError("no such luck")

        output = tmp_path / "sweep"
        bench(output, samples_of(1), metrics="own")  # s0 is there already
        logger = WandbBench(folder=output, config={"batch": 1})
        heard = [self.reporter(output), logger]
        bench(output, method=Recorder(fail), metrics="own", heard=heard)
        assert logger.run is None
        (run,) = test_callbacks.TestWandb().runs(output / "wandb")
        assert run["run"].run_group == "sweep"
        assert run["run"].job_type == "identity"
        assert run["run"].display_name == "identity seed 0"
        assert run["config"]["batch"] == 1
        summary = run["summary"]
        assert (summary["n_ok"], summary["n_total"], summary["status"]) == (2, 3, "done")
        rows = {row["name"]: row for row in self.rows(output)}
        assert len(rows) == 3
        assert rows["s1"]["error"] == "ValueError: no such luck"
        assert not [key for key in summary if key.startswith("mean/")]  # of survivors
        assert rows["s1"]["brightness"] is None
        assert rows["s0"]["truth"] is None
        assert any(path.name.startswith("sheet_made") for path in run["media"])
        assert run["exit"] == 0
        artifacts = self.artifacts(output)
        # each batch adds its row, with its pictures
        added = [files for kind, files in artifacts if kind == "wandb-run-incremental-table"]
        pictures = [sorted(Path(f).name for f in files if "media" in f) for files in added]
        both = ["edited.png", "points.png"]
        assert pictures == [both, ["points.png"], both]
        (files,) = [files for kind, files in artifacts if kind == "results"]
        assert {"run.json", "table.jsonl", "report/report.html", "report/summary.csv"} <= set(files)

    def test_means_are_of_all_or_of_none(self):
        from gooddrag.callbacks.wandb_logger import _means

        numbers = {"err": 1.0, "nan": None}, {"err": 3.0, "nan": 2.0}
        assert _means([{"metrics": found} for found in numbers]) == {"mean/err": 2.0}
        assert _means([]) == {}

    def test_an_end_before_time_is_told(self, tmp_path):
        from gooddrag.callbacks.wandb_logger import WandbBench

        def stop(samples):
            raise KeyboardInterrupt

        logger = WandbBench(folder=tmp_path / "out")
        with pytest.raises(KeyboardInterrupt):
            bench(tmp_path / "out", method=Recorder(stop), heard=[logger])
        (run,) = test_callbacks.TestWandb().runs(tmp_path / "out" / "wandb")
        assert run["summary"]["status"] == "interrupted"
        assert run["exit"] == 255

    def test_the_jobs_of_a_sweep_leave_a_whole_run_each(self, tmp_path):
        words = ["-m", "method=identity,paste", "data.count=2", "data.size=64", "metrics=default"]
        words += ["logger=wandb", "output=out/${method.name}", "trainer=cpu", "tables.resamples=9"]
        assert cli.run_command("bench", words) == []
        for name in ("identity", "paste"):
            (run,) = test_callbacks.TestWandb().runs(tmp_path / "out" / name / "wandb")
            assert run["run"].job_type == name
            assert (run["summary"]["n_ok"], run["exit"]) == (2, 0)
            rows = self.rows(tmp_path / "out" / name)
            assert len(rows) == 2
            mean = sum(row["dai_5"] for row in rows) / 2
            assert run["summary"]["mean/dai_5"] == pytest.approx(mean)
            kinds = [kind for kind, _ in self.artifacts(tmp_path / "out" / name)]
            assert kinds.count("results") == 1

    def test_only_when_asked_for(self):
        assert compose("bench", []).logger == {}
        cfg = compose("bench", ["logger=wandb", "output=x"])
        assert cfg.logger.wandb._target_.endswith("WandbBench")
        assert compose("edit", ["logger=wandb"]).logger.wandb._target_.endswith("WandbEdit")


@pytest.fixture(scope="module")
def drags(tmp_path_factory) -> Path:
    """A folder of samples for the program."""
    root = tmp_path_factory.mktemp("drags")
    for i in range(8):
        write_sample(tiny.make_sample(i), root / f"cat_{i}")
    return root


def start(cwd: Path, *words: str, **variables: str) -> subprocess.Popen:
    env = os.environ | {"GOODDRAG_CACHE": str(cwd / "cache"), "OMP_NUM_THREADS": "1"} | variables
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [PROGRAM, *words], cwd=cwd, env=env, stdout=pipe, stderr=pipe, text=True
    )


def finished(cwd: Path, *words: str) -> str:
    program = start(cwd, *words)
    out, err = program.communicate(timeout=300)
    assert program.returncode == 0, err
    return out


def records(output: Path) -> list[Path]:
    return sorted(output.glob("*/cat_*/record.json"))


def wait_for(program: subprocess.Popen, output: Path, count: int) -> None:
    until = time.monotonic() + 200
    while len(records(output)) < count and program.poll() is None and time.monotonic() < until:
        time.sleep(0.002)


class TestProgram:
    """The installed program, which is ended while it works."""

    def words(self, drags, tiny_folder, output, *more):
        data = ["data=folder", f"data.root={drags}", f"backbone.path={tiny_folder}"]
        flags = [word for word in more if word.startswith("-")]  # which Hydra wants first
        rest = [word for word in more if word not in flags]
        return ["bench", *flags, *data, f"output={output}", *FAST, *rest]

    def test_kill_at_any_moment_loses_at_most_what_is_in_flight(self, drags, tiny_folder, tmp_path):
        words = ["adapt=none", "trainer=cpu", *DRAG]
        undisturbed = self.words(drags, tiny_folder, tmp_path / "good", *words)
        finished(tmp_path, *undisturbed)
        disturbed = self.words(drags, tiny_folder, tmp_path / "bad", *words)
        for count, delay in ((1, 0.0), (3, 0.05), (4, 0.13)):
            program = start(tmp_path, *disturbed)
            wait_for(program, tmp_path / "bad", count)
            time.sleep(delay)
            program.kill()
            program.communicate()
            kept = records(tmp_path / "bad")
            assert len(kept) >= count
            assert all(json.loads(path.read_text())["status"] == "done" for path in kept)
        before = {path: path.stat().st_mtime_ns for path in records(tmp_path / "bad")}
        finished(tmp_path, *disturbed)
        assert all(path.stat().st_mtime_ns == when for path, when in before.items())
        (good,), (bad,) = (list((tmp_path / name).glob("folder-*")) for name in ("good", "bad"))
        assert good.name == bad.name
        assert table(good) == table(bad)
        for path in good.rglob("edited.png"):
            assert path.read_bytes() == (bad / path.relative_to(good)).read_bytes()
        assert not list(bad.rglob(".*"))

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_signals_end_it_cleanly(self, drags, tiny_folder, tmp_path, number):
        words = ["adapt=none", "trainer=cpu", "method.steps=4", "method.K=30", "method.B=10"]
        program = start(tmp_path, *self.words(drags, tiny_folder, tmp_path / "out", *words))
        wait_for(program, tmp_path / "out", 2)
        program.send_signal(number)
        _, err = program.communicate(timeout=100)
        assert program.returncode == 130, err
        assert err.splitlines()[-1] == "interrupted"
        assert "Traceback" not in err
        kept = records(tmp_path / "out")
        assert 2 <= len(kept) < 8
        assert all(json.loads(path.read_text())["status"] == "done" for path in kept)

    def test_two_processes_make_the_same_bits_as_one(self, drags, tiny_folder, tmp_path):
        words = [*DRAG, *LORA, "data.limit=3", f"cache={tmp_path}/${{trainer.devices}}", "-m"]
        one = ["trainer=cpu", *words, "seed=0,1"]
        two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", *words, "seed=0,1"]
        for name, sweep in (("one", one), ("two", two)):
            out = finished(tmp_path, *self.words(drags, tiny_folder, tmp_path / name, *sweep))
            assert out.count("3 of 3 samples done") == 2  # the jobs of the sweep, told once each
        ones, twos = (sorted((tmp_path / name).glob("folder-*")) for name in ("one", "two"))
        assert len(ones) == 2
        for one, two in zip(ones, twos, strict=True):
            assert one.name == two.name
            assert table(one) == table(two)
            for path in one.rglob("edited.png"):
                assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()

    def test_two_nodes(self, drags, tiny_folder, tmp_path):
        """Two programs that were started apart, as on two machines that share a folder."""
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(*free_ports(1))}
        words = [
            *DRAG,
            "adapt=none",
            "data.limit=3",
            "trainer.accelerator=cpu",
            "trainer.devices=1",
        ]
        nodes = self.words(
            drags, tiny_folder, tmp_path / "nodes", *words, "trainer=ddp", "trainer.num_nodes=2"
        )
        other, first = (start(tmp_path, *nodes, NODE_RANK=str(i), **meeting) for i in (1, 0))
        try:
            for program, says in ((first, True), (other, False)):  # the other waits for the first
                out, err = program.communicate(timeout=200)
                assert program.returncode == 0, err
                assert ("3 of 3 samples done" in out) is says
        finally:
            first.kill()
            other.kill()
        finished(tmp_path, *self.words(drags, tiny_folder, tmp_path / "one", *words, "trainer=cpu"))
        (one,), (two,) = (list((tmp_path / name).glob("folder-*")) for name in ("one", "nodes"))
        assert one.name == two.name
        assert table(one) == table(two)


class TestConf:
    @pytest.mark.parametrize("name", ["auto", "cpu", "ddp"])
    def test_trainers(self, name):
        cfg = compose("bench", [f"trainer={name}", "trainer.accelerator=cpu", "trainer.devices=1"])
        made = instantiate(cfg.trainer)
        assert made.predict_loop.inference_mode is False

    @pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
    @pytest.mark.parametrize("end", [0, -1])
    def test_wandb_sweeps_start_what_there_is(self, path, end):
        from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

        sweep = yaml.safe_load(path.read_text())
        chosen = {
            name: {
                "value": about["values"][end] if "values" in about else about[("min", "max")[end]]
            }
            for name, about in sweep["parameters"].items()
        }
        made = create_sweep_command_args({"args": chosen})["args_no_hyphens"]
        *words, macro = sweep["command"]
        assert macro == "${args_no_hyphens}"
        assert words[:3] == ["${env}", "${program}", "bench"]
        assert sweep["program"] == PROGRAM.name
        cfg = compose("bench", words[3:] + made)
        for name, found in chosen.items():
            assert OmegaConf.select(cfg, name) == found["value"]
        if "variant" in chosen:  # all of the experiment's
            assert sweep["parameters"]["variant"]["values"] == list(cfg.variants)
        if sweep["method"] != "grid":
            assert cfg.data.split == "validation"

    def test_data_sets_name_their_metrics(self):
        assert "truth_error" in compose("bench", []).metrics
        assert "truth_error" not in compose("bench", ["data=drag100", "data.root=x"]).metrics
        assert "truth_error" not in compose("bench", ["metrics=default"]).metrics
