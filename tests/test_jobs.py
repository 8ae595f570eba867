"""Jobs: what Hydra makes of a command line, experiments with variants, what a sweep shares."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gooddrag import cli, jobs
from gooddrag.backbones import shared, stable_diffusion
from gooddrag.data import write_sample
from tests import tiny

RECIPE = """\
# @package _global_
variants:
  identity: [method=identity]
  B2: [method.B=2]
  paste5: [method=paste, method.radius=5]
method:
  patience: null
tables:
  against: B2
"""
FAST = ["++method.steps=4", "++method.K=2", "++method.B=1", "++method.J=1"]
LORA = ["++adapt.steps=2", "++adapt.batch_size=1"]
EXPERIMENTS = ["01_alternating", "04_attention"]


@pytest.fixture
def words(tmp_path, tiny_folder, monkeypatch) -> list[str]:
    """A benchmark of two samples on the tiny model; recipes of one's own are in conf/."""
    for i in range(2):
        write_sample(tiny.make_sample(i), tmp_path / "data" / f"cat_{i}")
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOODDRAG_CACHE", str(tmp_path / "cache"))
    model = ["backbone=folder", f"backbone.path={tiny_folder}", "backbone.dtype=float32"]
    model += ["backbone.resolution=64"]
    data = ["data=folder", "data.root=data", "trainer=cpu", "report=false", "output=out"]
    return [*model, *data, *FAST, f"hydra.searchpath=[file://{tmp_path}/conf]"]


@pytest.fixture
def loads(monkeypatch) -> list:
    """The backbones that are loaded."""
    found: list = []
    init = stable_diffusion.StableDiffusion.__init__

    def counted(self, **settings):
        found.append(settings["low_memory"])
        init(self, **settings)

    monkeypatch.setattr(stable_diffusion.StableDiffusion, "__init__", counted)
    return found


def runs(output: Path) -> dict[str, dict]:
    """run.json by the folders' names."""
    return {path.parent.name: json.loads(path.read_text()) for path in output.glob("*/run.json")}


class TestSweeps:
    def test_an_experiment_is_a_sweep_over_its_variants(self, words):
        search = words[-1]
        (sweep,) = jobs.sweeps_of("bench", ["-m", "experiment=mine", "seed=0,1", search])
        assert sweep == ["-m", "seed=0,1", search, "experiment=mine", "variant=identity,B2,paste5"]

    def test_several_are_several(self):
        sweeps = jobs.sweeps_of("bench", ["-m", f"experiment={','.join(EXPERIMENTS)}", "seed=3"])
        assert [words[2] for words in sweeps] == [f"experiment={name}" for name in EXPERIMENTS]
        assert all(words[3].startswith("variant=identity,paste") for words in sweeps)

    @pytest.mark.parametrize(
        "words",
        [
            ["-m", "seed=0,1"],
            ["experiment=04_attention"],
            ["-m", "experiment=04_attention", "variant=never,always"],
        ],
    )
    def test_all_else_is_left_to_hydra(self, words):
        assert jobs.sweeps_of("bench", words) == [words]

    @pytest.mark.parametrize("word", ["method.B=1", "++method.B=1", "method=paste"])
    def test_what_the_variants_differ_in_is_not_set_for_all(self, words, word):
        """Rows would become one and the same."""
        with pytest.raises(ValueError, match=r"is what mine varies.* say variant="):
            jobs.sweeps_of("bench", ["-m", "experiment=mine", word, words[-1]])

    def test_what_does_not_exist(self):
        with pytest.raises(ValueError, match="Could not find 'experiment/no'"):
            jobs.sweeps_of("bench", ["-m", "experiment=no"])

    def test_names_need_no_quotes(self, words, tmp_path):
        recipe = tmp_path / "conf" / "experiment" / "mine.yaml"
        recipe.write_text(RECIPE.replace("B2:", "B = 2:"))
        with pytest.raises(ValueError, match="calls a variant 'B = 2'"):
            jobs.sweeps_of("bench", ["-m", "experiment=mine", words[-1]])


class TestVariants:
    def test_each_is_a_run_of_its_own(self, words, tmp_path):
        words = [word for word in words if word != "++method.B=1"]
        given = ["-m", "experiment=mine", "data.limit=1", *words, *LORA]
        assert cli.run_command("bench", given) == []
        found = {run["experiments"]["mine"]: run for run in runs(tmp_path / "out").values()}
        assert set(found) == {"identity", "B2", "paste5"}
        assert found["paste5"]["config"]["radius"] == 5
        assert found["B2"]["config"]["schedule"]["B"] == 2
        assert found["B2"]["config"]["settings"]["patience"] is None

    def test_one_of_them(self, words, tmp_path):
        given = ["experiment=mine", "variant=paste5", "data.limit=1"]
        assert cli.run_command("bench", [*given, *words]) == []
        (run,) = runs(tmp_path / "out").values()
        assert run["experiments"] == {"mine": "paste5"}
        assert run["config"]["radius"] == 5

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["experiment=04_attention"], "none was chosen: take -m"),
            (["experiment=04_attention", "variant=no"], "found 'no'.*identity, paste, never"),
            (["experiment=04_attention", "variant=never", "method.K=x"], "must be a whole number"),
        ],
    )
    def test_bad_input(self, words, message, capsys):
        with pytest.raises(SystemExit) as stop:
            raise SystemExit(cli.dispatch(["bench", *words]))
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert re.search(message, line), line


class TestSharing:
    def test_a_sweep_loads_its_model_once_and_changes_nothing(self, words, tmp_path, loads):
        words = [*words, "data.limit=1"]
        jobs = [[*LORA, "attention=always"], ["adapt=none"]]
        with shared.sharing():
            for job in jobs:
                assert cli.run_command("bench", ["-m", *words, *job]) == []
        assert len(loads) == 1
        together = {
            path.relative_to(tmp_path / "out"): path.read_bytes()
            for path in (tmp_path / "out").rglob("*.png")
        }
        for job in jobs:
            alone = [*words, "output=alone", "cache=other", *job]
            assert cli.run_command("bench", alone) == []
        assert len(loads) == 1 + 2
        assert set(runs(tmp_path / "alone")) == set(runs(tmp_path / "out"))
        assert len(together) == 2 + 1
        for path, content in together.items():
            assert (tmp_path / "alone" / path).read_bytes() == content, path

    def test_one_that_saves_memory_is_not_for_the_next(self, tiny_folder, loads):
        settings = shared_settings(tiny_folder)
        with shared.sharing():
            first = shared.stable_diffusion(**settings)
            assert shared.stable_diffusion(**settings) is first
            first.save_memory()
            second = shared.stable_diffusion(**settings)
            assert second is not first
            assert not second.low_memory
        assert shared.stable_diffusion(**settings) is not second
        assert len(loads) == 3

    def test_what_the_job_has_no_use_for_goes_when_another_comes(self, tiny_folder, loads):
        one, two = ({**shared_settings(tiny_folder), "resolution": side} for side in (64, 32))
        with shared.sharing():
            for settings in (one, two, one, two):
                shared.stable_diffusion(**settings)
            assert len(loads) == 2
            shared.next_job()
            shared.stable_diffusion(**two)
            shared.next_job()
            shared.stable_diffusion(**{**two, "resolution": 16})
            shared.stable_diffusion(**two)
        assert len(loads) == 4


def shared_settings(folder: Path) -> dict:
    return {
        "path": str(folder),
        "vae": None,
        "revision": None,
        "variant": None,
        "dtype": "float32",
        "device": "cpu",
        "feature_block": 2,
        "resolution": 64,
        "low_memory": False,
        "engine": tiny.engine_of("default"),
    }
