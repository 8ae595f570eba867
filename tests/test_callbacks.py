import csv
import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from gooddrag.callbacks import (
    DragVideo,
    EditWriter,
    ProgressBar,
    done_already,
    output,
    prepare,
    sample_folders,
)
from gooddrag.callbacks.csv_logger import COLUMNS, CsvEdit
from gooddrag.callbacks.scalars import edit_summary, interrupted, mean_distance, operation_scalars
from gooddrag.data import read_image, to_uint8
from gooddrag.drawing import before_after, overlay
from gooddrag.events import EditCallback, Phases
from gooddrag.schedule import aldd
from gooddrag.types import DragOperation, DragSample, Edit, Tracking, Trajectory
from tests.test_drag import make_editor
from tests.tiny import make_sample

SIZE, OPERATIONS, DENOISE = 64, 6, 4


def make(name="cat", seed=0, size=(SIZE, SIZE)):
    noise = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    image = torch.nn.functional.interpolate(noise, size, mode="bilinear")[0]
    mask = torch.zeros(1, *size)
    mask[:, 10:40] = 1
    handles, targets = torch.tensor([[10.0, 20], [30, 31]]), torch.tensor([[40.0, 20], [30, 31]])
    return DragSample(image, handles, targets, mask, "a prompt", name)


def operation(sample, index, k):
    handles = sample.handles + (sample.targets - sample.handles) * k / OPERATIONS
    preview = lambda: sample.image * (1 - k / 20)  # noqa: E731
    return DragOperation(
        index, k // 4, 700 - k, k, (3.0, 1.0 / k), (2.0, 0.5 / k), handles, preview
    )


def play(callbacks, samples, fail=None):
    """An edit's events in their order; `fail` is raised in the middle of dragging."""
    phases, ways = Phases(callbacks), [Trajectory(sample.handles) for sample in samples]
    phases.tell("on_edit_start", samples)
    try:
        with phases("adapt", 3) as advance:
            for i in range(3):
                advance(torch.tensor(1 / (i + 1), dtype=torch.float64))
        with phases("drag", 2 * OPERATIONS) as advance:
            for k in range(1, OPERATIONS + 1):
                for i, sample in enumerate(samples):
                    done = operation(sample, i, k)
                    ways[i].operations.append(done)
                    ways[i].trackings.append(
                        Tracking(k // 4, 700 - k, 2, done.handles, done.handles.flip(1) / 2)
                    )
                    phases.tell("on_drag_operation", done)
                if fail is not None and k == OPERATIONS // 2:
                    raise fail
                advance(torch.tensor(1.0 / k, dtype=torch.float64))
        with phases("denoise", DENOISE) as advance:
            for step in range(DENOISE):
                for i, sample in enumerate(samples):
                    preview = lambda s=sample, n=step: s.image.flip(1) * (1 - n / 20)  # noqa: E731
                    phases.tell("on_denoise_step", i, step, preview)
                advance()
        edits = []
        for sample, way in zip(samples, ways, strict=True):
            edits.append(Edit(sample.image.flip(2), way.handles, way, phases.seconds, 4096))
        phases.tell("on_edit_end", samples, edits)
        return edits
    except BaseException as error:
        phases.tell("on_edit_exception", samples, error)
        raise


def load(path):
    return json.loads(Path(path).read_text(), parse_constant=pytest.fail)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class TestScalars:
    def test_distance(self):
        sample = make()
        assert mean_distance(sample.handles, sample.targets) == 15
        assert mean_distance(sample.targets, sample.targets) == 0

    def test_operation(self):
        found = operation_scalars(operation(make(), 0, OPERATIONS), make())
        assert found == {"loss": (3 + 1 / 6) / 2, "drag_loss": (2 + 0.5 / 6) / 2, "distance": 0}
        empty = DragOperation(0, 0, 1, 1, (), (), make().handles)
        assert operation_scalars(empty, make()) == {"distance": 15}

    def test_method_that_does_not_track(self):
        sample = make()
        found = edit_summary(sample, Edit(sample.image, sample.handles, None, {}, 0))
        assert (found["stop"], found["operations"], found["distance_after"]) == (None, None, 15)

    def test_ctrl_c(self):
        assert interrupted(KeyboardInterrupt())
        assert not interrupted(SystemExit(1))
        assert not interrupted(RuntimeError())

    def test_ctrl_c_in_a_lightning_fit(self):
        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.automatic_optimization = False

            def training_step(self, batch, index):
                raise KeyboardInterrupt

            def configure_optimizers(self):
                return None

        handler = signal.getsignal(signal.SIGINT)
        trainer = lightning.Trainer(
            accelerator="cpu", devices=1, max_epochs=1, logger=False, barebones=True
        )
        try:
            with pytest.raises((SystemExit, KeyboardInterrupt)) as error:
                trainer.fit(Module(), range(1))
        finally:
            signal.signal(signal.SIGINT, handler)
        assert interrupted(error.value)


class TestPrepare:
    def test_makes_the_folder_and_leaves_nothing(self, tmp_path):
        prepare(tmp_path / "a" / "b")
        assert list((tmp_path / "a" / "b").iterdir()) == []

    def test_refuses_a_result_and_leaves_every_byte(self, tmp_path):
        play([EditWriter(tmp_path)], [make()])
        before = contents(tmp_path)
        with pytest.raises(ValueError, match=r"status done.*existing=overwrite.*existing=resume"):
            prepare(tmp_path)
        for edit in ([make()], [make(seed=3)]):
            with pytest.raises(ValueError, match="already holds a result"):
                play([EditWriter(tmp_path)], edit)
        assert contents(tmp_path) == before
        prepare(tmp_path, "overwrite")
        prepare(tmp_path, "resume")
        assert contents(tmp_path) == before

    def test_a_result_without_record_counts(self, tmp_path):
        (tmp_path / "edited.png").write_text("mine")
        with pytest.raises(ValueError, match="already holds"):
            prepare(tmp_path)

    def test_foreign_files_are_no_result(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        (tmp_path / ".hydra").mkdir()
        prepare(tmp_path)

    def test_a_file_in_the_way(self, tmp_path):
        (tmp_path / "a").write_text("mine")
        for path in (tmp_path / "a", tmp_path / "a" / "b"):
            with pytest.raises(ValueError, match="a is a file, not a folder") as error:
                prepare(path)
            assert f"cannot write into {path}" in str(error.value)
        assert (tmp_path / "a").read_text() == "mine"

    @pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
    def test_no_right_to_write(self):
        with pytest.raises(ValueError, match="cannot write into /proc/gooddrag/a"):
            prepare("/proc/gooddrag/a")

    def test_no_room_for_a_file(self, tmp_path):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        try:
            with pytest.raises(ValueError, match="cannot write into"):
                prepare(tmp_path / "a" / "b")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert list(tmp_path.iterdir()) == []

    def test_full_disk(self, tmp_path):
        code = (
            f"import runpy; prepare = runpy.run_path('{output.__file__}')['prepare']\n"
            "try: prepare('disk/out')\n"
            "except ValueError as error: print('refused:', error)"
        )
        mount = "mkdir disk && mount -t tmpfs -o size=64k tmpfs disk || exit 77"
        command = ["unshare", "-m", "sh", "-c", f'{mount}; exec {sys.executable} -c "{code}"']
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)
        }
        try:
            run = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True
            )
        except FileNotFoundError:
            pytest.skip("unshare is not installed")
        if run.returncode == 77 or "unshare" in run.stderr:
            pytest.skip("no right to mount a small disk")
        assert "refused: cannot write into disk/out: No space left on device" in run.stdout

    def test_unknown_choice(self, tmp_path):
        with pytest.raises(ValueError, match="existing must be"):
            prepare(tmp_path, "replace")


class TestResume:
    config = {"method": {"B": 10}, "existing": "refuse", "output": "x", "lr": float("inf")}  # noqa: RUF012

    def test_done_already(self, tmp_path):
        play([EditWriter(tmp_path, config=self.config)], [make()])
        again = self.config | {"existing": "resume", "output": "y"}
        again |= {"callbacks": {"writer": {"existing": "resume"}}}
        assert done_already(tmp_path, again, make())
        assert not done_already(tmp_path, self.config | {"method": {"B": 9}}, make())
        for other in (make("dog"), make(seed=1)):
            assert not done_already(tmp_path, again, other)
        (tmp_path / "edited.png").unlink()
        assert not done_already(tmp_path, again, make())

    def test_not_done(self, tmp_path):
        assert not done_already(tmp_path, self.config, make())
        with pytest.raises(KeyboardInterrupt):
            play([EditWriter(tmp_path, config=self.config)], [make()], KeyboardInterrupt())
        assert not done_already(tmp_path, self.config, make())
        (tmp_path / "record.json").write_text("[")
        assert not done_already(tmp_path, self.config, make())


class TestFolders:
    def test_one_and_several(self):
        assert sample_folders("out", [make()]) == (Path("out"),)
        folders = sample_folders("out", [make("a"), make("b/c")])
        assert folders == (Path("out/a"), Path("out/b/c"))

    @pytest.mark.parametrize("names", [("a", "a"), ("a", "../b"), ("a", "/b"), ("a", "")])
    def test_refuses(self, names):
        with pytest.raises(ValueError, match="sample"):
            sample_folders("out", [make(name) for name in names])


class TestWriter:
    def test_files(self, tmp_path):
        writer = EditWriter(tmp_path, config={"a": {"b": Path("c")}}, seed=3)
        (edit,) = play([writer], [make()])
        names = {"edited.png", "before_after.png", "trajectory.json", "record.json"}
        assert {path.name for path in tmp_path.iterdir()} == names
        expected = to_uint8(edit.image, "truncate")
        assert torch.equal(to_uint8(read_image(tmp_path / "edited.png")), expected)
        drawn = to_uint8(before_after(make(), edit))
        assert torch.equal(to_uint8(read_image(tmp_path / "before_after.png")), drawn)

    def test_record(self, tmp_path):
        play([EditWriter(tmp_path, config={"a": {"b": Path("c")}}, seed=3)], [make()])
        record = load(tmp_path / "record.json")
        expected = {
            "status": "done",
            "name": "cat",
            "prompt": "a prompt",
            "seed": 3,
            "config": {"a": {"b": "c"}},
            "distance_before": 15,
            "distance_after": 0,
            "stop": "schedule",
            "operations": OPERATIONS,
            "peak_memory": 4096,
            "error": None,
            "handles": make().handles.tolist(),
            "targets": make().targets.tolist(),
        }
        assert {key: record[key] for key in expected} == expected
        assert record["mask_share"] == pytest.approx(30 / 64)
        assert set(record["seconds"]) == {"adapt", "drag", "denoise"}
        assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
        assert record["started"] <= record["finished"]

    def test_trajectory(self, tmp_path):
        (edit,) = play([EditWriter(tmp_path)], [make()])
        way = load(tmp_path / "trajectory.json")
        assert way["start"] == make().handles.tolist()
        assert way["end"] == edit.handles.tolist()
        for found, done in zip(way["operations"], edit.trajectory.operations, strict=True):
            assert found == {
                "step": done.step,
                "timestep": done.timestep,
                "k": done.k,
                "losses": list(done.losses),
                "drag_losses": list(done.drag_losses),
                "handles": done.handles.tolist(),
            }
        assert [found["grid"] for found in way["trackings"]] == [
            tracking.grid.tolist() for tracking in edit.trajectory.trackings
        ]

    def test_rounding(self, tmp_path):
        (edit,) = play([EditWriter(tmp_path, rounding="nearest")], [make()])
        found = to_uint8(read_image(tmp_path / "edited.png"))
        assert torch.equal(found, to_uint8(edit.image, "nearest"))

    def test_running_until_done(self, tmp_path):
        EditWriter(tmp_path).on_edit_start([make()])
        assert load(tmp_path / "record.json")["status"] == "running"

    def test_several_samples(self, tmp_path):
        play([EditWriter(tmp_path)], [make("a"), make("b", 1)])
        assert [load(tmp_path / name / "record.json")["name"] for name in "ab"] == ["a", "b"]
        assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "b"]

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_ctrl_c(self, tmp_path, wrapped):
        error = KeyboardInterrupt()
        if wrapped:  # as Lightning does
            error = SystemExit(1)
            error.__context__ = KeyboardInterrupt()
        with pytest.raises(type(error)):
            play([EditWriter(tmp_path)], [make()], error)
        record = load(tmp_path / "record.json")
        assert (record["status"], record["error"]) == ("interrupted", None)
        assert record["operations"] == OPERATIONS // 2
        assert record["distance_after"] == pytest.approx(7.5)
        assert set(record["seconds"]) == {"adapt", "drag"}
        assert len(load(tmp_path / "trajectory.json")["operations"]) == OPERATIONS // 2
        last = make().image * (1 - OPERATIONS // 2 / 20)
        assert torch.equal(to_uint8(read_image(tmp_path / "partial.png")), to_uint8(last))
        assert not (tmp_path / "edited.png").exists()

    def test_failure(self, tmp_path):
        with pytest.raises(RuntimeError):
            play([EditWriter(tmp_path)], [make()], RuntimeError("out of memory"))
        record = load(tmp_path / "record.json")
        assert (record["status"], record["error"]) == ("failed", "RuntimeError: out of memory")
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "record.json",
            "trajectory.json",
        ]

    def test_a_failure_afterwards_leaves_the_record(self, tmp_path):
        writer = EditWriter(tmp_path)
        play([writer], [make()])
        writer.on_edit_exception([make()], RuntimeError("elsewhere"))
        assert load(tmp_path / "record.json")["status"] == "done"

    def test_overwrite_removes_only_its_own(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            play([EditWriter(tmp_path)], [make()], KeyboardInterrupt())
        (tmp_path / "drag.gif").write_text("old")
        (tmp_path / "notes.txt").write_text("mine")
        play([EditWriter(tmp_path, "overwrite")], [make()])
        names = {path.name for path in tmp_path.iterdir()}
        assert not names & {"partial.png", "drag.gif"}
        assert (tmp_path / "notes.txt").read_text() == "mine"

    def test_nan_losses_are_still_json(self, tmp_path):
        writer = EditWriter(tmp_path)
        writer.on_edit_start([make()])
        done = DragOperation(0, 0, 1, 1, (float("nan"),), (1.0,), make().handles)
        writer.on_drag_operation(done)
        writer.on_edit_exception([make()], RuntimeError("x"))
        assert load(tmp_path / "trajectory.json")["operations"][0]["losses"] == [None]


class TestVideo:
    def film(self, folder, monkeypatch, **options):
        monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # as where it is not installed
        play([DragVideo(folder, **options)], [make()])
        assert [path.name for path in folder.iterdir()] == ["drag.gif"]
        with Image.open(folder / "drag.gif") as film:
            frames, seconds = [], []
            for i in range(film.n_frames):
                film.seek(i)
                frames.append(np.array(film.convert("RGB")).astype(float))
                seconds.append(film.info["duration"] / 1000)
        return frames, seconds

    def test_gif(self, tmp_path, monkeypatch):
        frames, seconds = self.film(tmp_path, monkeypatch, every=1)
        assert len(frames) == 1 + OPERATIONS + DENOISE + 1
        assert seconds == [1.5] + [0.1] * (OPERATIONS + DENOISE) + [1.5]
        source = overlay(make().image, make().handles, make().targets)
        assert np.abs(frames[0] - to_uint8(source).numpy()).mean() < 6
        assert np.abs(frames[-1] - frames[0]).mean() > 20

    def test_the_points_keep_their_colours(self, tmp_path, monkeypatch):
        frames, _ = self.film(tmp_path, monkeypatch, every=1)
        assert np.abs(frames[0][20, 10] - (232, 44, 44)).max() < 12
        assert np.abs(frames[0][20, 40] - (38, 104, 240)).max() < 12

    def test_every(self, tmp_path, monkeypatch):
        frames, _ = self.film(tmp_path, monkeypatch, every=3)
        assert len(frames) == 1 + 2 + 2 + 1

    def test_previews_are_decoded_only_when_used(self, tmp_path):
        calls = []
        video = DragVideo(tmp_path, every=3)
        video.on_edit_start([make()])
        for k in range(1, 10):
            done = operation(make(), 0, k)
            preview = lambda k=k: calls.append(k) or make().image  # noqa: E731
            video.on_drag_operation(DragOperation(0, 0, 1, k, (), (), done.handles, preview))
        assert calls == [1, 4, 7]

    def test_memory_is_bounded(self, tmp_path):
        video = DragVideo(tmp_path, every=1, max_frames=10)
        video.on_edit_start([make()])
        first = video._reels[0].frames[0]
        for k in range(1, 200):
            video.on_drag_operation(operation(make(), 0, k % 6 + 1))
            assert len(video._reels[0].frames) <= 10
        assert video._reels[0].frames[0] is first
        assert len(video._reels[0].frames) > 4
        assert first.dtype == np.uint8

    def test_large_pictures_are_made_smaller(self, tmp_path, monkeypatch):
        frames, _ = self.film(tmp_path, monkeypatch, max_side=32)
        assert frames[0].shape == (32, 32, 3)

    def test_mp4(self, tmp_path):
        ffmpeg = pytest.importorskip("imageio_ffmpeg")
        play([DragVideo(tmp_path, every=1, hold=0.5)], [make(size=(63, 65))])
        assert [path.name for path in tmp_path.iterdir()] == ["drag.mp4"]
        reader = ffmpeg.read_frames(str(tmp_path / "drag.mp4"))
        assert next(reader)["size"] == (66, 64)
        assert len(list(reader)) == 1 + OPERATIONS + DENOISE + 1 + 2 * 4

    @pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
    def test_a_failed_edit_leaves_its_film_so_far(self, backbone, tmp_path, monkeypatch, error):
        class Failing(EditCallback):
            def on_drag_operation(self, operation):
                if operation.k == 3:
                    raise error

        monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
        video = DragVideo(tmp_path, every=1)
        with pytest.raises(type(error)):
            make_editor(backbone, aldd(4, 2))([make_sample()], callbacks=[video, Failing()])
        assert [path.name for path in tmp_path.iterdir()] == ["drag.gif"]
        assert video._reels == []
        with Image.open(tmp_path / "drag.gif") as film:
            assert film.n_frames == 1 + 3

    def test_no_film_without_a_frame(self, tmp_path):
        video = DragVideo(tmp_path / "out")
        video.on_edit_exception([make()], RuntimeError())  # failed before it began
        video.on_edit_start([make()])
        video.on_edit_exception([make()], RuntimeError())
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("error", "trouble"),
        [(RuntimeError("boom"), OSError), (KeyboardInterrupt(), KeyboardInterrupt)],
    )
    def test_trouble_with_the_film_hides_no_error(self, tmp_path, monkeypatch, error, trouble):
        def broken(*_):
            raise trouble

        monkeypatch.setattr("gooddrag.callbacks.video.write_film", broken)
        writer = EditWriter(tmp_path)
        with pytest.raises(type(error)) as raised:
            play([DragVideo(tmp_path), writer], [make()], error)
        assert raised.value is error
        assert load(tmp_path / "record.json")["status"] != "running"

    def test_a_film_that_cannot_be_written_is_tried_once(self, tmp_path, monkeypatch):
        tried = []

        def broken(folder, *_):
            tried.append(folder)
            raise OSError("No space left on device")

        monkeypatch.setattr("gooddrag.callbacks.video.write_film", broken)
        with pytest.raises(OSError, match="No space"):
            play([DragVideo(tmp_path)], [make()])
        assert tried == [tmp_path]

    def test_refuses(self, tmp_path):
        with pytest.raises(ValueError, match="every"):
            DragVideo(tmp_path, every=0)


class TestProgress:
    def run(self, terminal, fail=None):
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=terminal, width=100, _environ={})
        bar, threads = ProgressBar(console), threading.active_count()
        if fail is None:
            play([bar], [make()])
        else:
            with pytest.raises(type(fail)):
                play([bar], [make()], fail)
        until = time.monotonic() + 5
        while threading.active_count() > threads and time.monotonic() < until:
            time.sleep(0.01)  # rich tells its thread to stop without waiting for it
        assert threading.active_count() == threads
        return stream.getvalue()

    def test_no_terminal_gives_a_line_per_phase(self):
        lines = self.run(False).splitlines()
        assert [line.split(",")[0] for line in lines[:3]] == [
            "LoRA adaptation: 3 steps",
            f"dragging: {OPERATIONS} steps",
            f"denoising: {DENOISE} steps",
        ]
        assert "\x1b" not in "".join(lines)

    def test_summary(self):
        text = self.run(False)
        (row,) = [line for line in text.splitlines() if "cat" in line]
        assert row.replace("│", " ").split() == ["cat", "15.0", "0.0", str(OPERATIONS), "schedule"]
        assert "total" in text

    def test_terminal(self):
        text = self.run(True)
        assert "loss 0.1667" in text
        assert "0.0 px to go" in text
        assert f"{OPERATIONS}/{OPERATIONS}" in text  # a stop before the last step fills the bar
        assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("x")])
    def test_closes_on_exceptions(self, error):
        text = self.run(True, error)
        assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
        assert "total" not in text

    def test_writes_to_stderr(self, capsys):
        play([ProgressBar()], [make()])
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "dragging" in captured.err


class TestCsv:
    def test_rows(self, tmp_path):
        play([CsvEdit(tmp_path)], [make("a"), make("b, c", 1)])
        with open(tmp_path / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert tuple(rows[0]) == COLUMNS
        adapt = [float(row["loss"]) for row in rows if row["phase"] == "adapt"]
        assert adapt == [1, 1 / 2, 1 / 3]
        for index, name in enumerate(("a", "b, c")):
            drag = [row for row in rows if row["sample"] == name]
            assert [int(row["index"]) for row in drag] == list(range(1, OPERATIONS + 1))
            for k, row in enumerate(drag, start=1):
                expected = operation_scalars(operation(make(), index, k), make())
                assert {key: float(row[key]) for key in expected} == expected

    def test_keeps_what_was_before_a_failure(self, tmp_path):
        with pytest.raises(RuntimeError):
            play([CsvEdit(tmp_path)], [make()], RuntimeError())
        assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 3 + OPERATIONS // 2


def wandb_records(folder):
    """Read an offline run: LevelDB's log format, blocks of 32 KiB, after 7 bytes of header."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("run-*.wandb")
    content, at, parts = path.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def wandb_items(items):
    """Nested keys joined by a dot."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.mark.usefixtures("wandb_offline")
class TestWandb:
    def test_offline_runs_are_read_back(self, tmp_path):
        from gooddrag.callbacks.wandb_logger import WandbEdit

        logger = WandbEdit(folder=tmp_path / "out", group="sweep", config={"method": {"B": 10}})
        (edit,) = play([DragVideo(tmp_path / "out"), logger], [make()])
        with pytest.raises(RuntimeError):
            play([logger], [make("dog")], RuntimeError("x"))
        assert logger.run is None

        good, bad = self.runs(tmp_path / "out" / "wandb")
        assert good["run"].run_group == "sweep"
        assert good["run"].job_type == "edit"
        assert good["run"].project == "gooddrag"
        assert good["run"].display_name == "cat"
        assert good["config"]["method"] == {"B": 10}
        rows = [row for row in good["history"] if "drag/operation" in row]
        assert [row["drag/operation"] for row in rows] == list(range(1, OPERATIONS + 1))
        for k, row in enumerate(rows, start=1):
            for key, value in operation_scalars(operation(make(), 0, k), make()).items():
                assert row[f"drag/{key}"] == pytest.approx(value, rel=1e-12)
        adapt = [row["adapt/loss"] for row in good["history"] if "adapt/loss" in row]
        assert adapt == pytest.approx([1, 1 / 2, 1 / 3])
        axes = {metric.name: metric for metric in good["metrics"] if metric.name != "adapt/loss"}
        assert {"drag/loss", "drag/drag_loss", "drag/distance"} <= set(axes)
        self.check_media(good, edit)
        summary = good["summary"]
        expected = {
            "stop": "schedule",
            "distance_before": 15,
            "distance_after": 0,
            "status": "done",
        }
        assert {key: summary[key] for key in expected} == expected
        assert "seconds/drag" in summary
        assert (good["exit"], bad["exit"]) == (0, 1)

        assert bad["run"].display_name == "dog"
        assert bad["summary"]["status"] == "failed"
        assert sum("drag/operation" in row for row in bad["history"]) == OPERATIONS // 2

    def check_media(self, run, edit):
        (shown,) = [path for path in run["media"] if path.name.startswith("before_after")]
        expected = to_uint8(before_after(make(), edit))
        assert torch.equal(to_uint8(read_image(shown)), expected)
        names = {path.name.split("_")[0] for path in run["media"]}
        assert names == {"source", "points", "result", "before", "video"}

    def complete(self, records):
        return {"run", "exit"} <= {record.WhichOneof("record_type") for record in records}

    def runs(self, folder):
        found = []
        for path in folder.glob("offline-run-*"):
            records, until = list(wandb_records(path)), time.monotonic() + 10
            while time.monotonic() < until and not self.complete(records):
                time.sleep(0.1)  # W&B's own process may still be writing
                records = list(wandb_records(path))
            run = {"history": [], "summary": {}, "media": [], "metrics": []}
            for record in records:
                kind = record.WhichOneof("record_type")
                if kind == "run":
                    run["run"] = record.run
                    run["config"] = wandb_items(record.run.config.update)
                elif kind == "history":
                    run["history"].append(wandb_items(record.history.item))
                elif kind == "summary":
                    run["summary"] |= wandb_items(record.summary.update)
                elif kind == "metric":
                    run["metrics"].append(record.metric)
                elif kind == "exit":
                    run["exit"] = record.exit.exit_code
            run["media"] = [
                file for file in (path / "files" / "media").rglob("*") if file.is_file()
            ]
            found.append(run)
        return sorted(found, key=lambda run: run["run"].display_name)

    def test_unknown_mode(self):
        from gooddrag.callbacks.wandb_logger import WandbEdit

        with pytest.raises(ValueError, match="online, offline, disabled; found 'of'"):
            WandbEdit(mode="of")

    def test_disabled(self, tmp_path):
        from gooddrag.callbacks.wandb_logger import WandbEdit

        play([WandbEdit(folder=tmp_path / "out", mode="disabled")], [make("a"), make("b")])
        assert not (tmp_path / "out" / "wandb").exists()

    def test_online_without_a_key_is_refused_at_once(self, tmp_path, monkeypatch):
        from gooddrag.callbacks.wandb_logger import WandbEdit

        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        with pytest.raises(ValueError, match="WANDB_MODE=offline"):
            WandbEdit(folder=tmp_path, mode="online").on_edit_start([make()])


class TestConf:
    CONF = Path(__file__).parents[1] / "conf"

    @pytest.mark.parametrize(
        "path", sorted(CONF.glob("callbacks/*")) + sorted(CONF.glob("logger/*"))
    )
    def test_every_file_makes_callbacks(self, path, tmp_path):
        from functools import partial

        from hydra.utils import instantiate
        from omegaconf import OmegaConf

        from gooddrag.events import EditCallback

        root = {
            "output": str(tmp_path),
            "existing": "refuse",
            "seed": 3,
            "it": OmegaConf.load(path),
        }
        made = instantiate(OmegaConf.create(root).it)
        for callback in made.values():
            if isinstance(callback, partial):
                callback = callback(config={"method": {"B": 10}})
                assert callback.config == {"method": {"B": 10}}
            assert isinstance(callback, EditCallback)
