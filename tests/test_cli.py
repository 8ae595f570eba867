import copy
import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from gooddrag import cli, commands, composition, request
from gooddrag.backbones import loading
from gooddrag.backbones.embedded import mini
from gooddrag.events import PHASES
from gooddrag.jobs import Job
from tests import test_callbacks, test_datasets
from tests.test_data import chunk, png_header

PROGRAM = Path(sys.executable).with_name("gooddrag")
POINTS = "points=[[20,20],[40,20]]"
NUMBERS = [
    "adapt.steps=2",
    "adapt.batch_size=1",
    "backbone.resolution=64",
    "backbone.dtype=float32",
    "backbone.device=cpu",
    "method.steps=4",
    "method.strength=0.75",
    "method.B=1",
    "method.K=1",
    "method.J=1",
]
FAST = ["adapt=none", *(word for word in NUMBERS if not word.startswith("adapt."))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a picture; everything in it is made by this file."""
    folder = tmp_path_factory.mktemp("cli")
    colours = np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(colours.repeat(16, 0).repeat(16, 1)).save(folder / "cat.png")
    Image.new("L", (64, 64), 255).save(folder / "mask.png")
    return folder


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    """An empty working folder, so that whatever is left behind shows."""
    for name in ("cat.png", "mask.png"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here, capsys, monkeypatch):
    """Call the console script's function; gives status, stdout and stderr."""

    def run(*arguments):
        capsys.readouterr()
        with mock.patch.dict(os.environ), mock.patch.object(sys, "argv", ["gooddrag", *arguments]):
            os.environ["GOODDRAG_CACHE"] = str(here.parent / "cache")
            with pytest.raises(SystemExit) as stop:
                cli.main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


@pytest.fixture
def refused(run, here):
    """Call it, expect one line of error and nothing left behind; gives the line."""

    def refused(*arguments):
        before = tree(here)
        status, _, err = run(*arguments)
        assert status == 2
        lines = [line for line in err.splitlines() if line]
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        assert tree(here) == before
        return lines[0]

    return refused


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    """One edit by the installed program: its output folder, and what it said."""
    output = tmp_path_factory.mktemp("done") / "deep" / "output"
    arguments = ["image=cat.png", "mask=mask.png", POINTS, f"output={output}", "logger=csv"]
    result = start(folder, "edit", *arguments, *NUMBERS)
    out, err = result.communicate(timeout=300)
    assert result.returncode == 0, err
    return output, out, err, arguments


def start(folder, *arguments):
    environment = os.environ | {"GOODDRAG_CACHE": str(folder / "cache"), "COLUMNS": "80"}
    pipe = subprocess.PIPE
    # a group of its own, as in a terminal, where Ctrl-C is not ignored
    return subprocess.Popen(
        [PROGRAM, *arguments], cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True
    )


def tree(folder):
    """Every file's bytes and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def load(path):
    return json.loads(path.read_text())


class TestStart:
    def test_help_tells_all_in_a_screen(self, run):
        for arguments in ((), ("--help",), ("-h",), ("help",)):
            status, out, err = run(*arguments)
            assert (status, err) == (0, "")
            assert len(out.splitlines()) <= 30
            assert max(map(len, out.splitlines())) <= 100
            for word in ("edit", "adapt", "world", "pretrain", "points=", "sd15", "-m "):
                assert word in out

    @pytest.mark.parametrize("command", commands.COMMANDS)
    def test_help_of_commands(self, run, command):
        status, out, err = run(command, "--help")
        assert (status, err) == (0, "")
        assert out.startswith(f"gooddrag {command} ")
        assert "_target_" not in out
        assert "seed=0" in out

    def test_help_shows_choices_and_remarks(self, run):
        _, out, _ = run("edit", "backbone=sd15", "method.B=7", "-h")
        assert "sd15*" in out
        assert "method.B=7" in out
        assert "drag operations per denoising step" in out
        assert max(map(len, out.splitlines())) <= 100

    def test_version(self, run):
        from gooddrag import __version__

        assert run("--version") == (0, f"gooddrag {__version__}\n", "")

    def test_unknown_command(self, refused):
        assert "'edti'" in refused("edti")

    def test_imports_wait_until_needed(self):
        code = """
import sys
from gooddrag import cli
assert not {"torch", "hydra", "lightning", "PIL"} & set(sys.modules), "help"
from gooddrag import DragSample, Edit, edit, load_method
assert not {"hydra", "diffusers"} & set(sys.modules), "Python"
"""
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_unknown_attribute(self):
        import gooddrag

        with pytest.raises(AttributeError, match="'edti'"):
            gooddrag.edti  # noqa: B018


class TestEdit:
    def test_files(self, done):
        output, out, _, _ = done
        assert {path.name for path in output.iterdir()} - {"drag.mp4", "drag.gif"} == {
            "edited.png",
            "before_after.png",
            "trajectory.json",
            "record.json",
            "metrics.csv",
        }
        assert str(output) in out
        assert "before_after.png" in out
        assert Image.open(output / "edited.png").size == (64, 64)

    def test_record(self, done):
        record = load(done[0] / "record.json")
        assert record["status"] == "done"
        assert record["config"]["method"]["K"] == 1
        assert set(record["seconds"]) == set(PHASES)
        assert record["handles"] == [[20, 20]]
        assert record["peak_memory"] > 0

    def test_stderr_is_the_summary_and_nothing_else(self, done):
        lines = done[2].splitlines()
        assert [line.split(":")[0] for line in lines[:6]] == [
            "LoRA adaptation",
            "inversion",
            "reference",
            "dragging",
            "denoising",
            "decoding",
        ]
        assert lines[6].startswith("pixels from handle to target")
        assert max(map(len, lines)) <= 80
        assert any("total" in line for line in lines)

    def test_metrics(self, done):
        rows = list(csv.DictReader((done[0] / "metrics.csv").read_text().splitlines()))
        assert [row["phase"] for row in rows] == ["adapt", "adapt", "drag"]

    def test_leaves_nothing_in_the_working_folder(self, done, folder):
        assert {path.name for path in folder.iterdir()} == {"cat.png", "mask.png", "cache"}

    def test_a_result_is_refused(self, done, run, folder, monkeypatch):
        monkeypatch.chdir(folder)
        before = tree(done[0])
        status, _, err = run("edit", *done[3], *NUMBERS)
        assert (status, tree(done[0])) == (2, before)
        assert "already holds a result" in err
        assert "existing=overwrite" in err

    def test_resume_keeps_a_finished_result(self, done, run, folder, monkeypatch):
        monkeypatch.chdir(folder)
        before = tree(done[0])
        with mock.patch.object(commands, "instantiate", side_effect=AssertionError):
            status, out, _ = run("edit", *done[3], *NUMBERS, "existing=resume")
        assert (status, tree(done[0])) == (0, before)
        assert "done already" in out

    def test_resume_does_not_replace_another_edit(self, done, run, folder, monkeypatch):
        monkeypatch.chdir(folder)
        before = tree(done[0])
        status, _, err = run("edit", *done[3], *NUMBERS, "existing=resume", "method.lr=0.5")
        assert (status, tree(done[0])) == (2, before)
        assert "another edit" in err

    def test_overwrite_replaces_what_it_owns(self, run, here):
        (here / "output").mkdir()
        for name in ("record.json", "partial.png", "mine.txt"):
            (here / "output" / name).write_text("old")
        arguments = ["image=cat.png", POINTS, "output=output", "callbacks=quiet", *FAST]
        assert run("edit", *arguments, "existing=overwrite")[0] == 0
        assert load(here / "output" / "record.json")["status"] == "done"
        assert not (here / "output" / "partial.png").exists()
        assert (here / "output" / "mine.txt").read_text() == "old"

    def test_new_folder_by_default(self, run, here):
        assert run("edit", "image=cat.png", POINTS, "callbacks=quiet", *FAST)[0] == 0
        (made,) = (here / "outputs").iterdir()
        assert made.name.startswith("cat_")
        assert load(made / "record.json")["status"] == "done"

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["image=cat.png", POINTS, *FAST], True),
            (["image=cat.png", POINTS, "method=paste"], False),
            (["method=identity"], False),
        ],
    )
    def test_the_built_in_model_is_no_match_for_photographs(self, run, here, words, told):
        status, _, said = run("edit", *words, "callbacks=quiet")
        assert status == 0
        assert ("backbone=sd15" in said) == told

    def test_wandb_offline_is_read_back(self, run, here, wandb_offline):
        arguments = ["image=cat.png", POINTS, "output=output", "logger=wandb"]
        assert run("edit", *arguments, *FAST, "method.J=2")[0] == 0
        (found,) = test_callbacks.TestWandb().runs(here / "output" / "wandb")
        assert found["run"].display_name == "cat"
        assert found["config"]["method"]["J"] == 2
        (row,) = [row for row in found["history"] if "drag/loss" in row]
        assert row["drag/operation"] == 1
        assert found["summary"]["status"] == "done"
        assert found["exit"] == 0
        names = {path.name.split("_")[0] for path in found["media"]}
        assert names == {"source", "points", "result", "before", "video"}

    def test_wandb_disabled(self, run, here, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "disabled")
        arguments = ["image=cat.png", POINTS, "output=output", "logger=wandb", "callbacks=quiet"]
        assert run("edit", *arguments, *FAST)[0] == 0
        assert not (here / "output" / "wandb").exists()

    def test_sample_folder(self, run, here):
        sample = here / "sample"
        sample.mkdir()
        (sample / "original.png").symlink_to(here / "cat.png")
        (sample / "points.json").write_text('{"points": [[20, 20], [40, 20]]}')
        arguments = ["sample=sample", "prompt=7", "output=output", "callbacks=quiet"]
        assert run("edit", *arguments, *FAST)[0] == 0
        assert load(here / "output" / "record.json")["prompt"] == "7"


def truncated(here):
    content = (here / "cat.png").read_bytes()
    (here / "cut.png").write_bytes(content[: len(content) // 2])


def bomb(here):
    chunks = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (here / "bomb.png").write_bytes(png_header(60000, 60000) + chunks)


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "found"),
        [
            (["image=no.png", POINTS], "there is no file no.png"),
            (["image=.", POINTS], "is a folder: give an image file"),
            (["image=text.png", POINTS], "is not a picture that can be read"),
            (["image=cut.png", POINTS], "damaged or cut off"),
            (["image=bomb.png", POINTS], "60000 x 60000|megapixels"),
            (["image=[1,2]", POINTS], "image must be one path"),
            (["image=cat.png", POINTS, "mask=wide.png"], "the mask wide.png is 80 x 64 pixels"),
            (["image=cat.png", POINTS, "mask=no.png"], "there is no file no.png"),
            (["image=cat.png"], "which points"),
            (["image=cat.png", "points=[[1,1],[64,2]]"], r"target 1 at \(64, 2\) lies outside"),
            (["image=cat.png", "points=[[-1,1],[6,2]]"], r"handle 1 at \(-1, 1\) lies outside"),
            (["image=cat.png", "points=[[1,1],[2,2],[3,3]]"], "an odd number"),
            (["image=cat.png", "points=[[nan,1],[2,3]]"], "finite numbers"),
            (["image=cat.png", "points=[[inf,1],[2,3]]"], "finite numbers"),
            (["image=cat.png", "points=[[a,1],[2,3]]"], "x and y must be numbers"),
            (["image=cat.png", "points=here"], "points must be a list of points"),
            (["image=cat.png", "points=[]"], "holds no points"),
            (["image=cat.png", "points=[1,2]"], "not a pair"),
            (["image=cat.png", "points=[[5,5],[5,5]]"], "every pair is a pin"),
            (["sample=.", "image=cat.png"], "not both"),
            (["sample=."], "holds no picture"),
            (["sample=no"], "is not a folder"),
            ([POINTS], "need a picture"),
            (["image=cat.png", POINTS, "existing=maybe"], "existing must be refuse, overwrite"),
            (["image=cat.png", POINTS, "output=text.png"], "cannot write into text.png"),
            (["image=cat.png", POINTS, "output=text.png/a"], "cannot write into text.png/a"),
            (["demo.split=no"], "DragWorld has the splits"),
        ],
    )
    def test_before_anything_is_loaded(self, quick, here, arguments, found):
        (here / "text.png").write_text("no picture")
        truncated(here)
        bomb(here)
        Image.new("L", (80, 64), 255).save(here / "wide.png")
        with mock.patch.object(loading, "load_components", side_effect=AssertionError):
            line = quick(*arguments)
        assert re.search(found, line), line

    @pytest.fixture(scope="class")
    def composed(self):
        with composition.composer() as compose:
            return compose("edit", FAST)

    @pytest.fixture
    def quick(self, here, composed, capsys):
        """`refused` without Hydra, which takes the longest; gives the line."""

        def quick(*arguments):
            from hydra.core.override_parser.overrides_parser import OverridesParser

            cfg, before = copy.deepcopy(composed), tree(here)
            cfg.output = "a/b"
            for override in OverridesParser.create().parse_overrides(list(arguments)):
                OmegaConf.update(cfg, override.key_or_group, override.value())
            capsys.readouterr()
            with (
                mock.patch.object(request, "present_job", return_value=Job([], {})),
                cli._explained() as statuses,
            ):
                commands.run_edit(cfg)
            (line,) = capsys.readouterr().err.splitlines()
            assert statuses == [2]
            assert line.startswith("error: ")
            assert tree(here) == before
            return line

        return quick

    @pytest.mark.parametrize(
        ("override", "found"),
        [
            (
                "method.foo=1",
                r"override 'method.foo': there is no such setting with these choices \(--help",
            ),
            ("backbone=foo", r"^error: Could not find 'backbone/foo'.* mini sd15 sd21 .*--help"),
            ("engine=foo", r"Available options in 'engine': default plain \(--help[^:]*$"),
            ("--adapt=none", "there is no option --adapt: .* as in adapt=none .*--help"),
            ("--quick", r"there is no option --quick: .* as in quick=\.\.\."),
            ("prompt=my (1)", "quotes of their own"),
            ("method.lr=fast", "method.lr must be a number"),
            ("method.lr=nan", "method.lr must be a number"),
            ("method.K=2.5", "method.K must be a whole number"),
            ("callbacks.video.fps=[1]", "must be a number"),
            ("image=no.png", "there is no file no.png"),
            ("adapt=file", "adapt.path is missing"),
            ("backbone=folder", "backbone.path is missing"),
        ],
    )
    def test_through_hydra(self, refused, loaded, override, found):
        arguments = ["image=cat.png", POINTS] if "image" not in override else [POINTS]
        line = refused("edit", *arguments, "output=a/b", override)
        assert re.search(found, line), line

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
    def test_no_rights(self, refused, here):
        (here / "locked").mkdir(mode=0o500)
        assert "cannot write into" in refused("edit", "image=cat.png", POINTS, "output=locked/a")

    @pytest.mark.parametrize(
        ("override", "found"),
        [
            ("method.K=70", "raise method.B, or lower method.K"),
            ("method.K=0", "K"),
            ("method.B=0", "B"),
            ("method.J=0", "J must be at least 1"),
            ("method.lr=-1", "lr positive"),
            ("method.strength=0", "strength"),
            ("method.strength=2", "strength"),
            ("method.steps=0", "steps"),
            ("method.steps=2000", "steps"),
            ("method.r1=-1", "r1"),
            ("method.fit=stretch", "fit"),
            ("method.grid_rounding=up", "rounding"),
            ("method.on_arrival=now", "on_arrival"),
            ("method.patience=0", "patience"),
            ("method.empty_mask=x", "empty_mask"),
            ("method.lr=null", "cannot work"),
            ("backbone.dtype=int8", "int8"),
            ("backbone.device=tpu", "tpu"),
            ("backbone.feature_block=9", "feature_block"),
            ("attention.when=x", "when"),
            ("supervision.scale=x", "scale"),
            ("tracking.when=x", "when"),
        ],
    )
    def test_settings(self, quick, loaded, override, found):
        assert found in quick("image=cat.png", POINTS, override)

    @pytest.fixture
    def loaded(self):
        """The model's parts are read from the disk once."""
        with mock.patch.object(loading, "load_components", side_effect=parts):
            yield


READ, PARTS = loading.load_components, {}


def parts(path, *_):
    if not PARTS:
        PARTS.update(READ(path))
    return dict(PARTS)


class TestCheckpoints:
    def refuse(self, refused, path):
        return refused("edit", "image=cat.png", POINTS, "backbone=folder", f"backbone.path={path}")

    @pytest.fixture
    def checkpoint(self, here):
        """The embedded model by links, to be broken."""
        for path in Path(mini()).rglob("*"):
            target = here / "model" / path.relative_to(mini())
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                target.symlink_to(path)
        return here / "model"

    def index(self, checkpoint, **changes):
        path = checkpoint / "model_index.json"
        content = {**load(path), **changes}
        path.unlink()
        path.write_text(json.dumps(content))

    def test_missing(self, refused):
        assert "there is no folder ./no" in self.refuse(refused, "./no")

    def test_a_single_file(self, refused, here):
        (here / "model.safetensors").write_bytes(b"x")
        assert "single checkpoint file" in self.refuse(refused, "model.safetensors")

    def test_a_hub_id_while_offline(self, run, here):
        assert os.environ["HF_HUB_OFFLINE"] == "1"  # of all tests
        before = tree(here)
        status, _, err = run("edit", "image=cat.png", POINTS, "backbone=sd15", "output=o")
        loading, line = err.splitlines()
        assert (status, tree(here)) == (2, before)
        assert loading.startswith("loading stable-diffusion-v1-5")
        assert line.startswith("error: cannot load stable-diffusion-v1-5/stable-diffusion-v1-5")
        assert "it was not reached, nor is it in its cache" in line

    @pytest.mark.parametrize(
        "name",
        [
            "unet/diffusion_pytorch_model-00002-of-00003.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
            "text_encoder/model.safetensors",
        ],
    )
    @pytest.mark.parametrize("cut", [True, False])
    def test_half_a_download(self, refused, checkpoint, name, cut):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).unlink()
        if cut:
            (checkpoint / name).write_bytes(content[: len(content) // 2])
        assert f"cannot load the {name.split('/')[0]}" in self.refuse(refused, "model")

    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("model_index.json", "holds no model_index.json"),
            ("unet/config.json", "cannot load the unet"),
            ("vae/config.json", "cannot load the vae"),
            ("tokenizer/vocab.json", "cannot load the tokenizer"),
            ("scheduler/scheduler_config.json", "cannot load the scheduler"),
        ],
    )
    def test_missing_files(self, refused, checkpoint, name, found):
        (checkpoint / name).unlink()
        assert found in self.refuse(refused, "model")

    @pytest.mark.parametrize(
        ("changes", "found"),
        [
            (
                {
                    "_class_name": "StableDiffusionXLPipeline",
                    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
                },
                "Stable Diffusion XL",
            ),
            ({"_class_name": "FluxPipeline", "transformer": ["diffusers", "X"]}, "(DiT)"),
            ({"unet": [None, None]}, "without unet"),
        ],
    )
    def test_other_pipelines(self, refused, checkpoint, changes, found):
        self.index(checkpoint, **changes)
        assert found in self.refuse(refused, "model")

    def test_broken_index(self, refused, checkpoint):
        (checkpoint / "model_index.json").unlink()
        (checkpoint / "model_index.json").write_text("{")
        assert "model" in self.refuse(refused, "model")

    def test_inpainting_unet(self, refused, checkpoint):
        from diffusers import UNet2DConditionModel

        small = {"in_channels": 9, "block_out_channels": (16, 16, 16, 16), "attention_head_dim": 1}
        config = {**load(checkpoint / "unet" / "config.json"), **small}
        for path in (checkpoint / "unet").iterdir():
            path.unlink()
        UNet2DConditionModel.from_config(config).save_pretrained(checkpoint / "unet")
        assert "inpainting UNet with 9 input channels" in self.refuse(refused, "model")


class TestFailures:
    def edit(self, run, error, *more):
        with mock.patch("gooddrag.ddim.invert", side_effect=error):
            return run("edit", "image=cat.png", POINTS, "output=output", *FAST, *more)

    def test_out_of_memory_names_the_knobs(self, run, here):
        status, _, err = self.edit(run, torch.OutOfMemoryError("CUDA out of memory.\nTried 2 GiB"))
        assert status == 2
        line = err.splitlines()[-1]
        assert line.startswith("error: out of memory")
        for knob in ("backbone.low_memory=true", "smaller", "backbone.dtype=bfloat16"):
            assert knob in line
        assert load(here / "output" / "record.json")["status"] == "failed"

    def test_a_defect_shows_its_traceback(self, here, capsys):
        with pytest.raises(RuntimeError, match="boom"):
            self.edit(self.plain_run, RuntimeError("boom"))
        record = load(here / "output" / "record.json")
        assert (record["status"], record["error"]) == ("failed", "RuntimeError: boom")

    def plain_run(self, *arguments):
        with mock.patch.dict(os.environ), mock.patch.object(sys, "argv", ["gooddrag", *arguments]):
            cli.main()

    def test_a_full_disk(self, run, here):
        full = OSError(errno.ENOSPC, "No space left on device")
        with mock.patch("gooddrag.callbacks.writer.write_png", side_effect=full):
            status, _, err = run("edit", "image=cat.png", POINTS, "output=output", *FAST)
        assert status == 2
        assert "No space left" in err.splitlines()[-1]
        assert load(here / "output" / "record.json")["status"] == "failed"

    def test_ctrl_c_before_the_edit_leaves_nothing(self, run, here):
        before = tree(here)
        with mock.patch.object(loading, "load_components", side_effect=KeyboardInterrupt):
            status, _, err = run("edit", "image=cat.png", POINTS, "output=output", *FAST)
        assert (status, err) == (130, "interrupted\n")
        assert tree(here) == before


class TestInterrupt:
    def interrupt(self, here, number, phase, *arguments):
        """Start an edit, end it once its phase has left three rows, give status and stderr."""
        arguments = ["image=cat.png", POINTS, "output=output", "logger=csv", *arguments]
        program = start(here, "edit", *arguments)
        try:
            until, metrics = time.monotonic() + 200, here / "output" / "metrics.csv"
            while time.monotonic() < until and program.poll() is None:
                if metrics.exists() and metrics.read_text().count(f",{phase},") >= 3:
                    break
                time.sleep(0.05)
            program.send_signal(number)
            _, err = program.communicate(timeout=100)
        finally:
            program.kill()
        return program.returncode, err

    def test_while_dragging(self, here):
        endless = ["method.B=5000", "method.K=5000", "method.patience=null"]
        numbers = [word for word in FAST if word not in ("method.B=1", "method.K=1")]
        words = [*numbers, *endless, "method.on_arrival=never"]
        status, err = self.interrupt(here, signal.SIGINT, "drag", *words)
        assert status == 130
        assert [line for line in err.splitlines() if "interrupted" in line] == ["interrupted"]
        assert "Traceback" not in err
        record = load(here / "output" / "record.json")
        assert record["status"] == "interrupted"
        assert record["operations"] >= 3
        assert record["finished"]
        way = load(here / "output" / "trajectory.json")
        assert len(way["operations"]) == record["operations"]
        assert len(way["trackings"]) >= record["operations"]
        assert Image.open(here / "output" / "partial.png").size == (64, 64)
        assert list((here / "output").glob("drag.*"))
        assert not (here / "output" / "edited.png").exists()

    def test_while_adapting(self, here):
        """By the signal of clusters and containers."""
        numbers = [word for word in NUMBERS if not word.startswith("adapt.steps")]
        words = [*numbers, "adapt.steps=100000"]
        status, err = self.interrupt(here, signal.SIGTERM, "adapt", *words)
        assert status == 130
        assert err.splitlines()[-1] == "interrupted"
        assert "Traceback" not in err
        record = load(here / "output" / "record.json")
        assert record["status"] == "interrupted"
        assert list(record["seconds"]) == ["adapt"]
        assert not list((here / "cache").rglob("*.safetensors"))


class TestSweep:
    def test_each_job_has_its_folder_and_a_failure_spoils_no_other(self, run, here):
        sweep = ["image=no.png,cat.png", "seed=3", "output=sweep", "callbacks=quiet"]
        status, _, err = run("edit", "-m", *sweep, POINTS, *FAST)
        assert status == 2
        assert "error: there is no file no.png" in err
        assert "Traceback" not in err
        assert sorted(path.name for path in (here / "sweep").iterdir()) == ["1"]
        assert load(here / "sweep" / "1" / "record.json")["status"] == "done"
        assert {path.name for path in here.iterdir()} == {"cat.png", "mask.png", "sweep"}

    def test_new_folder_for_the_whole_sweep(self, run, here):
        with mock.patch.object(commands, "edit"), mock.patch.object(commands, "instantiate"):
            assert run("edit", "-m", "image=cat.png", POINTS, "seed=1,2", *FAST)[0] == 0
        (folder,) = (here / "outputs").iterdir()
        assert folder.name.startswith("sweep_")
        assert sorted(path.name for path in folder.iterdir()) == ["0", "1"]

    def test_ctrl_c_ends_all_of_it(self, run, here):
        with mock.patch.object(commands, "sample_of", side_effect=KeyboardInterrupt) as called:
            assert run("edit", "-m", "seed=1,2,3")[0] == 130
        assert called.call_count == 1
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class TestAdapt:
    def test_files_and_cache(self, run, here):
        numbers = [word for word in NUMBERS if not word.startswith(("method.", "callbacks."))]
        arguments = ["image=cat.png", f"cache={here}/kept", *numbers]
        status, out, err = run("adapt", *arguments, "output=first")
        assert status == 0
        assert "LoRA adaptation: 2 steps" in err
        files = {str(path.relative_to(here)) for path in here.rglob("*.safetensors")}
        name = "pytorch_lora_weights.safetensors"
        assert {f"first/{name}", f"first/adapter/{name}"} <= files
        assert f"first/{name}" in out
        status, _, err = run("adapt", *arguments, "output=second")
        assert status == 0
        assert "LoRA adaptation: from the cache" in err
        assert (here / "second" / name).read_bytes() == (here / "first" / name).read_bytes()
        self.refuses_its_own(run, here, arguments)

    def refuses_its_own(self, run, here, arguments):
        before = tree(here)
        status, _, err = run("adapt", *arguments, "output=first")
        assert (status, tree(here)) == (2, before)
        assert "already holds a LoRA" in err

    def test_a_folder_needs_no_points(self, run, here):
        (here / "sample").mkdir()
        (here / "sample" / "original.png").symlink_to(here / "cat.png")
        numbers = [word for word in NUMBERS if not word.startswith("method.")]
        arguments = [f"cache={here}/kept", *numbers]
        assert run("adapt", "sample=sample", "output=first", *arguments)[0] == 0
        status, _, err = run("adapt", "image=cat.png", "output=second", *arguments)
        assert status == 0
        assert "LoRA adaptation: from the cache" in err  # the same LoRA, then

    def test_nothing_to_train(self, refused):
        assert "take adapt=lora" in refused("adapt", "image=cat.png", "adapt=none", "output=o")

    def test_bad_input(self, refused):
        assert "no.png" in refused("adapt", "image=no.png", "output=o")


class TestWorld:
    def test_files(self, run, here):
        assert run("world", "count=2", "start=3", "size=64", "output=world")[0] == 0
        folders = sorted(path for path in (here / "world").iterdir() if path.is_dir())
        assert len(folders) == 2
        for folder in folders:
            names = {path.name for path in folder.iterdir()}
            assert names == {"original.png", "mask.png", "points.json", "truth.png", "truth.json"}
            assert {"task", "family", "caption"} <= load(folder / "truth.json").keys()
        assert Image.open(here / "world" / "sheet.png").width > 128
        from gooddrag.data import read_sample

        assert read_sample(folders[0]).size == (64, 64)
        self.refuses_before_writing(run, here)

    def refuses_before_writing(self, run, here):
        before = tree(here)
        status, _, err = run("world", "count=3", "start=2", "size=64", "output=world")
        assert (status, tree(here)) == (2, before)
        assert "existing=overwrite" in err
        again = ("world", "count=2", "start=3", "size=64", "output=world", "existing=overwrite")
        assert run(*again)[0] == 0
        assert tree(here) == before

    @pytest.mark.parametrize(
        "override", ["count=0", "split=no", "start=-1", "size=8", "output=cat.png"]
    )
    def test_bad_input(self, refused, override):
        refused("world", "output=world", "size=64", override)


class TestData:
    @pytest.fixture
    def bench(self, here):
        return test_datasets.make_dragbench(here / "bench")

    def test_where_sets_come_from(self, run, here):
        status, out, err = run("data")
        assert (status, err) == (0, "")
        assert tree(here).keys() == {"cat.png", "mask.png"}
        assert max(map(len, out.splitlines())) <= 100
        for word in ("data=drag100", "205 samples, 349 pairs", "https://", "licence", "arXiv 24"):
            assert word in out

    def test_without_a_root(self, run, here):
        status, out, _ = run("data", "data=dragbench")
        assert status == 0
        assert "DragBench.zip" in out
        assert "data.root=DIR" in out

    def test_a_copy_that_is_not_whole(self, run, bench):
        status, out, err = run("data", "data=dragbench", "data.root=bench")
        assert status == 2
        assert "samples: found 3, known are 205" in out
        assert "not there: animals/JH_2023-09-14-1839-58, " in out
        (line,) = err.splitlines()
        assert line.startswith("error: this is not DragBench")

    def test_a_part_of_a_copy(self, run, bench):
        status, out, err = run("data", "data=dragbench", "data.root=bench", "data.limit=2")
        assert (status, err) == (0, "")
        assert "categories  2 animals" in out
        assert "nothing differs" in out

    def test_a_broken_sample_is_named(self, run, here, bench):
        (bench / "art_work" / "X" / "meta_data.pkl").write_bytes(b"cos\nsystem\n.")
        status, out, err = run("data", "data=dragbench", "data.root=bench", "data.select=*/*")
        assert status == 2
        assert "X/meta_data.pkl asks for os.system" in out
        assert len(err.splitlines()) == 1

    @pytest.mark.parametrize("form", ["folder", "session"])
    def test_converts(self, run, here, bench, form):
        arguments = ["data", "data=dragbench", "data.root=bench", "convert=new", f"format={form}"]
        status, out, err = run(*arguments)
        assert (status, out, err) == (0, "3 samples in new/\n", "")
        before = tree(here / "new")
        status, _, err = run(*arguments)
        assert (status, tree(here / "new")) == (2, before)
        assert "existing=overwrite" in err
        assert run(*arguments, "existing=resume")[1] == (
            "0 samples in new/, 3 were there already\n"
        )
        assert run(*arguments, "existing=overwrite")[1] == "3 samples in new/\n"
        assert tree(here / "new") == before
        status, out, _ = run("data", f"data={form}", "data.root=new")
        assert status == 0
        assert "categories  2 animals, 1 art_work" in out
        assert "every sample can be read" in out

    @pytest.mark.parametrize(
        ("arguments", "found"),
        [
            (["data=cats"], "cats"),
            (["data.root=bench"], "data"),
            (["convert=new"], "convert which data"),
            (["data=drag100", "convert=new"], "data.root is missing"),
            (["data=drag100", "data.root=no"], "there is no folder no"),
            (["data=drag100", "data.root=bench"], "holds no samples: expected folders"),
            (["data=dragbench", "data.root=bench", "data.limit=0"], "limit must be"),
            (["data=dragbench", "data.root=bench", "data.select=cat"], "is called 'cat'"),
            (["data=dragbench", "data.root=bench", "convert=new", "format=zip"], "format must be"),
            (["data=dragbench", "data.root=bench", "convert=cat.png"], "cannot write into cat.png"),
            (["data=world", "convert=new", "existing=maybe"], "existing must be refuse"),
            (["data=world", "data.split=no", "convert=new"], "DragWorld has the splits"),
        ],
    )
    def test_refuses(self, refused, bench, arguments, found):
        assert found in refused("data", *arguments)


class TestBench:
    DATA = ("data.count=2", "data.size=64", "metrics=default", "trainer=cpu", "tables.resamples=20")

    def test_a_sweep_goes_into_one_folder_that_the_report_reads(self, run, here):
        words = ["method=identity,paste", "seed=0,1", *self.DATA, "output=sweep"]
        status, out, _ = run("bench", *words[:2], "-m", *words[2:])  # a flag may stand anywhere
        assert status == 0
        assert out.count("2 of 2 samples done") == 4
        folders = {path.name.rpartition("-")[0] for path in (here / "sweep").glob("world*")}
        runs = {f"world_size_64-{m}-seed{s}" for m in ("identity", "paste") for s in (0, 1)}
        assert folders == runs
        report = (here / "sweep" / "report" / "report.md").read_text()
        assert "## world size=64: 2 samples, 2 methods, 2 seeds (0, 1)" in report
        for method in ("identity", "paste"):
            assert f"| {method} | 4 / 4 | 2 |" in report
        assert {path.name for path in here.iterdir()} == {"cat.png", "mask.png", "sweep"}

    def test_numbers_are_told_apart_and_kept(self, run, here):
        words = ["method=paste", *self.DATA, "output=sweep"]
        for radius in ("method.radius=3,5", "method.radius=5,3"):
            assert run("bench", "-m", radius, *words)[0] == 0
        assert len(list((here / "sweep").glob("world*"))) == 2
        status, out, _ = run("report", "sweep", "output=tables", "tables.resamples=20")
        assert (status, out) == (0, "report: tables/report.html (and .md, .csv)\n")
        report = (here / "tables" / "report.md").read_text()
        assert "| paste method.radius=3 | 2 / 2 |" in report
        assert "| paste method.radius=5 | 2 / 2 |" in report

    def test_a_report_into_a_file(self, run, here):
        assert run("bench", "method=identity", *self.DATA, "output=a", "report=false")[0] == 0
        (here / "report.txt").write_text("mine")
        for words in (["output=report.txt"], ["output=report.txt/b"]):
            status, _, err = run("report", "a", *words, "tables.resamples=20")
            assert (status, len(err.splitlines())) == (2, 1)
            assert "report.txt is a file, not a folder; choose another output folder" in err
        assert (here / "report.txt").read_text() == "mine"
        status, _, err = run("report", "nothing", "output=new/report")
        assert status == 2
        assert not (here / "new").exists()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["batch=0"], "batch must be at least 1"),
            (["existing=keep"], "existing must be resume, overwrite, refuse"),
            (["data=drag100"], "data.root is missing"),
            (["logger=csv"], "logger=none or wandb"),
            (["data.root=x"], "data.root"),
            (["label=paste"], "label=paste is the name of a row"),
            (["tables.level=two"], "tables.level must be a number"),
            (["tables.level=2"], "tables.level must lie between 0 and 1, found 2"),
            (["tables.thumbnail=0"], "tables.thumbnail must be at least 1, found 0"),
            (["tables.resamples=0", "report=false"], "tables.resamples must be at least 1"),
            (["tables.sheet=-1"], "tables.sheet must be at least 0"),
            pytest.param(
                ["trainer=gpu"],
                "take trainer=cpu",
                marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
            ),
            (["trainer=cpu", "trainer.devices=0"], "take trainer=cpu"),
        ],
    )
    def test_bad_input(self, refused, words, message):
        assert message in refused("bench", "method=identity", *words)
