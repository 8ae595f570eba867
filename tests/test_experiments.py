"""The experiments: every recipe can be run as it stands, and compares what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from gooddrag import load_method
from gooddrag.backbones.shared import sharing
from gooddrag.bench.records import NOT_THE_METHOD, digest_of, without
from gooddrag.composition import composer, instantiate, plain, space_of, unresolved
from gooddrag.jobs import NAME, _with_variant
from gooddrag.settings import check_numbers

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
FOLDERS = {"05_more_departures": "05_departures", "07_plus_validation": "07_plus"}
FOLDERS |= {"08_drag100": "08_paper", "08_dragbench": "08_paper"}
PROGRAM = Path(sys.executable).with_name("gooddrag")


@cache
def composed(recipe: str) -> dict[str, Any]:
    """Each variant's configuration, on the tiny model; None has the recipe's own."""
    root = ["data.root=x"] if recipe.startswith("08") else []
    found: dict[Any, Any] = {}
    with composer() as compose:
        own = compose("bench", [f"experiment={recipe}", *root])
        found[None] = own
        for name in own.variants:
            words = _with_variant(plain(own.variants), name, [f"experiment={recipe}", *root])
            found[name] = compose("bench", words)
            check_numbers(unresolved(found[name]), unresolved(own))
    return found


def editors(recipe: str, folder: Path) -> dict[str, Any]:
    """What edits in each variant."""
    made = {}
    for name, cfg in composed(recipe).items():
        if name is not None:
            cfg.backbone.update({"path": str(folder), "vae": None, "dtype": "float32"})
            made[name] = instantiate(cfg.editor)
    return made


SLOW = ("05_more_departures", "07_plus_validation", "08_dragbench")  # like another, and long


@pytest.mark.parametrize(
    "recipe", [pytest.param(r, marks=[pytest.mark.slow] if r in SLOW else []) for r in RECIPES]
)
class TestRecipes:
    def test_it_can_be_run(self, recipe, tiny_folder):
        with sharing():
            made = editors(recipe, tiny_folder)
        assert {"identity", "paste"} <= set(made)

    def test_it_compares_with_one_of_its_own(self, recipe):
        cfg = composed(recipe)[None]
        assert cfg.tables.against in cfg.variants
        assert all(NAME.fullmatch(name) for name in cfg.variants)

    def test_no_two_variants_are_the_same(self, recipe):
        configs = {k: plain(cfg)["editor"] for k, cfg in composed(recipe).items() if k is not None}
        digests = [digest_of(config) for config in configs.values()]
        assert len(set(digests)) == len(digests)

    def test_its_folder_says_how_it_is_run(self, recipe):
        text = (ROOT / "experiments" / FOLDERS.get(recipe, recipe) / "README.md").read_text()
        assert f"experiment={recipe}" in text
        for part in ("**Question.**", "**Command**", "**Result.**", "**How the verdict"):
            assert part in text


class TestWork:
    """What is compared at equal work is at equal work."""

    @pytest.mark.parametrize("recipe", ["01_alternating", "02_loss"])
    def test_gradient_steps_are_equal_and_nothing_ends_them(self, recipe, tiny_folder):
        with sharing():
            made = editors(recipe, tiny_folder)
        for name, editor in made.items():
            if name in ("identity", "paste"):
                continue
            assert sum(editor.schedule) * editor.settings.J == 210, name
            ends = (editor.settings.patience, editor.settings.on_arrival)
            assert ends == ((5, "good") if name.startswith("stops") else (None, "never")), name

    def test_the_loss_alone_differs(self, tiny_folder):
        with sharing():
            made = editors("02_loss", tiny_folder)
        for J in (1, 3, 10):
            preserving, referential = made[f"preserving_J{J}"], made[f"referential_J{J}"]
            assert preserving.schedule == referential.schedule
            assert preserving.settings == referential.settings
            assert preserving.supervision.beta == referential.supervision.beta == 4.0
            assert preserving.supervision.reference == "original"
            assert referential.supervision.reference == "current"
            assert made[f"referential_step1_J{J}"].supervision.beta == 1.0
            # as many gradient steps at each denoising step
            assert {count * J for count in preserving.schedule} == {30}

    def test_the_gooddrag_of_all_tables_is_one_run(self):
        """One where LoRAs are kept, and one where its seconds hold their training."""
        kept = {"03_lora": "steps70", "04_attention": "after_drag", "05_departures": "official"}
        kept |= {"05_more_departures": "official", "01_alternating": "stops_B10"}
        timed = {"06_methods": "gooddrag", "07_plus": "gooddrag"}
        left_out = (*NOT_THE_METHOD, "backbone")  # other tests put another one in
        digests = [
            {
                digest_of(without(plain(composed(recipe)[name])["editor"], left_out))
                for recipe, name in names.items()
            }
            for names in (kept, timed)
        ]
        assert [len(found) for found in digests] == [1, 1]
        assert digests[0] != digests[1]

    def test_nothing_is_tuned_on_the_test_split(self):
        with composer() as compose:
            chosen, reported = (
                compose("bench", [f"experiment={recipe}"])
                for recipe in ("07_plus_validation", "07_plus")
            )
        assert (chosen.data.split, reported.data.split) == ("validation", "test")

    def test_what_is_searched_for_gooddrag_plus_can_be_run(self, tiny_folder):
        """An unlikely warp held as long as may be, on ladders of all lengths."""
        parameters = yaml.safe_load((ROOT / "experiments/sweeps/gooddrag_plus.yaml").read_text())
        ranges = {key: (r["min"], r["max"]) for key, r in parameters["parameters"].items()}
        text = (ROOT / "experiments" / "07_plus" / "README.md").read_text()
        space = space_of(json.loads(re.search(r"'space=(.*?)'", text)[1]))
        assert space["method.held_unlikely"].high <= ranges["method.held_unlikely"][1]
        assert space["method.K"].high <= 8  # plus_K8 is run
        low, high = ranges["method.strength"]
        words = [f"method.{key}={ranges['method.' + key][1]}" for key in ("held_unlikely", "K")]
        own = ["backbone=folder", f"backbone.path={tiny_folder}", "backbone.resolution=64"]
        with sharing():
            for step in range(8):
                strength = f"method.strength={low + step / 7 * (high - low)}"
                load_method("gooddrag_plus", [*own, *words, strength, "backbone.device=cpu"])


# The program, ended as a cluster ends it when there is a first record.
CUT_OFF = """#!/usr/bin/env bash
[ "$1" = bench ] || exec {program} "$@"
{program} "$@" &
until ls "$OUTPUT"/*/*/record.json >/dev/null 2>&1; do sleep 0.1; done
kill -TERM $!
wait $!
"""


TOLD = """#!/bin/sh
echo "${{CUDA_VISIBLE_DEVICES-none}} $*" >> {file}
case "$*" in *seed=1*) exit 3 ;; esac
"""


@pytest.mark.parametrize(
    ("gpus", "visible", "shares"),
    [
        ("", "", {"none": "a,b,c"}),
        ("1", "", {"0": "a,b,c"}),
        ("2", "", {"0": "a,c", "1": "b"}),
        ("2", "4,5", {"4": "a,c", "5": "b"}),
        ("4", "", {"0": "a", "1": "b", "2": "c"}),
    ],
)
def test_a_process_for_each_seed_and_gpu(
    tmp_path: Path, gpus: str, visible: str, shares: dict[str, str]
) -> None:
    """One after another, or side by side on devices in turn; one that fails stops no other."""
    told, program = tmp_path / "told", tmp_path / "program"
    program.write_text(TOLD.format(file=told))
    program.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    env |= {"GOODDRAG": str(program), "OUTPUT": str(tmp_path), "EXPERIMENTS": "a,b,c"}
    env |= {"GPUS": gpus} | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})
    done = subprocess.run([ROOT / "experiments" / "run_all.sh", "batch=7"], env=env, timeout=60)
    assert done.returncode == 3
    *runs, packed = told.read_text().splitlines()
    assert packed == f"{visible or 'none'} pack {tmp_path}"
    words = f"bench -m experiment={{}} seed={{}} output={tmp_path} report=false batch=7"
    expected = [
        f"{device} {words.format(share, seed)}"
        for device, share in shares.items()
        for seed in range(3)
    ]
    assert sorted(runs) == sorted(expected)


@pytest.mark.parametrize("gpus", ["0", "two"])
def test_gpus_that_are_no_number_of_gpus(tmp_path: Path, gpus: str) -> None:
    env = os.environ | {"GPUS": gpus, "GOODDRAG": "false", "OUTPUT": str(tmp_path)}
    command = [ROOT / "experiments" / "run_all.sh"]
    done = subprocess.run(command, env=env, timeout=60, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"GPUS must be how many GPUs to use, 1 or more, found {gpus}\n"


@pytest.mark.slow
def test_all_of_them_in_miniature(tmp_path, tiny_folder):
    """Cut off, gone on with from the pack alone, and reported on."""
    words = ["data.count=1", "data.size=64", "backbone=folder", f"backbone.path={tiny_folder}"]
    words += ["backbone.resolution=64", "backbone.dtype=float32", "trainer=cpu", "workers=1"]
    words += ["++method.steps=4", "++method.K=2", "++method.B=1", "++method.J=1"]
    words += ["++method.after=0", "++method.held_unlikely=0"]
    env = os.environ | {"GOODDRAG": str(PROGRAM), "GOODDRAG_CACHE": str(tmp_path / "cache")}
    env |= {"SEEDS": "0", "OUTPUT": str(tmp_path / "out"), "OMP_NUM_THREADS": "1"}
    chosen = ["06_methods", "07_plus", "03_lora", "04_attention"]
    env["EXPERIMENTS"] = ",".join(chosen)
    env |= {"REPORTS": str(tmp_path / "reports"), "INTO": str(tmp_path / "into")}

    def script(name: str, *arguments: str, **more: str) -> int:
        command = [ROOT / "experiments" / name, *arguments]
        return subprocess.run(command, env=env | more, timeout=1800).returncode

    def unpacked(name: str) -> Path:
        with tarfile.open(Path(env["OUTPUT"]) / "pack.tar.xz") as tar:
            tar.extractall(tmp_path / name, filter="data")
        return tmp_path / name

    cut = tmp_path / "cut"
    cut.write_text(CUT_OFF.format(program=PROGRAM))
    cut.chmod(0o755)
    assert script("run_all.sh", *words, GOODDRAG=str(cut)) == 130
    early = unpacked("early")
    assert list(early.glob("*/*/record.json"))
    env["OUTPUT"] = str(early)
    kept = {path: path.read_bytes() for path in early.glob("*/*/record.json")}
    assert script("run_all.sh", *words) == 0
    assert all(path.read_bytes() == content for path, content in kept.items())
    everything = unpacked("everything")
    assert script("report_all.sh", str(everything)) == 0
    for recipe in chosen:
        text = (tmp_path / "into" / recipe / "report.md").read_text()
        for name in composed(recipe)[None].variants:
            assert f"| {name} | 1 / 1 | 1 |" in text, (recipe, name)
