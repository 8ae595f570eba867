"""The commands: each takes its composed configuration, leaves files and prints where they are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gooddrag.api import edit
from gooddrag.composition import each_option, instantiate, plain, space_of, with_changes
from gooddrag.jobs import recipe_of
from gooddrag.manual import card, table
from gooddrag.request import (
    benchmark_of,
    callbacks_of,
    experiment_of,
    output_of,
    paths_of,
    restartable,
    sample_of,
    text_of,
)

if TYPE_CHECKING:
    from gooddrag.composition import DictConfig
    from gooddrag.data.dragset import DragSet

INTERRUPTED = 130  # the exit status after Ctrl-C
RESULTS = (
    "edited.png",
    "before_after.png",
    "drag.mp4",
    "drag.gif",
    "trajectory.json",
    "record.json",
    "metrics.csv",
)


def run_edit(cfg: DictConfig) -> None:
    """gooddrag edit."""
    from gooddrag.callbacks.output import done_already, is_finished, reserved

    sample = sample_of(cfg)
    cfg.output = str(output_of(cfg, sample.name))
    if cfg.existing == "resume" and is_finished(cfg.output):
        if not done_already(cfg.output, plain(cfg), sample):
            raise ValueError(
                f"{cfg.output} holds the finished result of another edit: choose another output "
                "folder, or existing=overwrite to replace it"
            )
        print(f"{cfg.output}: done already")
        return
    with reserved(cfg.output, cfg.existing):
        callbacks = callbacks_of(cfg)
        _say_what_loads(cfg)
        edit(sample, instantiate(cfg.editor), seed=cfg.seed, callbacks=callbacks)
    written = [name for name in RESULTS if (Path(cfg.output) / name).exists()]
    print(f"results in {cfg.output}/: {', '.join(written)}")
    if cfg.image is not None and _uses_built_in_model(cfg):
        print(
            "the built-in model knows drawn scenes alone: photographs want backbone=sd15",
            file=sys.stderr,
        )


def run_adapt(cfg: DictConfig) -> None:
    """gooddrag adapt."""
    from gooddrag.backbones.adapter_files import ADAPTER_FILE, save_adapter
    from gooddrag.callbacks.output import reserved
    from gooddrag.events import Phases

    sample = sample_of(cfg, needs_points=False)
    folder = output_of(cfg, sample.name)
    if cfg.existing == "refuse" and (folder / ADAPTER_FILE).exists():
        raise ValueError(
            f"{folder} already holds a LoRA: choose another output folder, or existing=overwrite"
        )
    with reserved(folder, cfg.existing, owned=()):
        phases = Phases(callbacks_of(cfg))
        _say_what_loads(cfg)
        backbone, adapt = instantiate(cfg.backbone), instantiate(cfg.adapt)
        try:
            adapters = adapt(backbone, [sample], phases)
        except BaseException as error:
            phases.tell("on_edit_exception", [sample], error)
            raise
        phases.tell("on_edit_end", [], [])
        if not adapters:
            raise ValueError("adapt=none trains nothing: take adapt=lora")
        save_adapter(adapters[0], folder)
    print(f"LoRA: {folder / ADAPTER_FILE} (diffusers' adapter form: {folder / 'adapter'}/)")


def run_world(cfg: DictConfig) -> None:
    """gooddrag world."""
    from gooddrag.callbacks.output import reserved
    from gooddrag.data.world import write_world

    folder = Path(text_of(cfg, "output") or f"outputs/world_{cfg.split}_{cfg.seed}")
    with reserved(folder, cfg.existing, owned=()):
        write_world(
            folder,
            split=cfg.split,
            seed=cfg.seed,
            indices=range(cfg.start, cfg.start + cfg.count),
            size=cfg.size,
            sheet=cfg.sheet,
            existing=cfg.existing,
        )
    print(f"{cfg.count} samples in {folder}/")


def run_data(cfg: DictConfig) -> None:
    """gooddrag data."""
    settings, output = plain(cfg), text_of(cfg, "convert")
    if "data" not in settings:
        if output is not None:
            raise ValueError("convert which data? Give data=NAME (and data.root=DIR) as well")
        for name, choice in each_option("datasets", "data").items():
            print(f"data={name}: {card(choice['about'])}\n")
    elif output is not None:
        _convert(cfg, instantiate(cfg.data), Path(output))
    else:
        print(card(settings["about"]))
        root = settings["data"].get("root")
        if root == "???":
            print("data.root=DIR checks a copy of it, and convert=OUT converts one")
        elif root is not None:
            _check(instantiate(cfg.data), settings["about"])


def run_bench(cfg: DictConfig) -> None:
    """gooddrag bench."""
    _need_one(_benchmark(cfg, "bench", Path(text_of(cfg, "output") or "outputs/bench")))


def run_score(cfg: DictConfig) -> None:
    """gooddrag score: a benchmark whose method reads files."""
    from gooddrag.bench.beside import beside_others, theirs_in

    if "data" not in cfg:
        raise ValueError("which data are these results of? Give data=NAME (see gooddrag data)")
    folders = paths_of(cfg, "results", "which results? Give results=DIR")
    found, rows = theirs_in(folders, cfg.label, cfg.seed), []
    reading = _reading(cfg)
    for theirs in found:
        # from the root on, so that a run says what it was made from
        folder = theirs.folder.resolve() if theirs.folder.is_dir() else theirs.folder
        changes = {"results": str(folder), "label": theirs.label, "seed": theirs.seed}
        changes |= {f"editor.{key}": value for key, value in reading.items()}
        changes["report"] = cfg.report and theirs is found[-1]
        if "gscore" in cfg.metrics and cfg.beside and len(found) > 1:
            judge = plain(cfg.metrics.gscore.judge)
            changes["metrics.gscore"] = beside_others(judge, theirs, found, reading)
        rows += _score(with_changes(cfg, changes))
    _need_one(rows)


def _reading(cfg: DictConfig) -> dict[str, Any]:
    """How results are found: names of files, and of samples what is not theirs alone, if any."""
    from gooddrag.bench.results import shared_in

    everything = {f"data.{key}": None for key in ("select", "limit") if key in cfg.data}
    shared = shared_in(instantiate(with_changes(cfg, everything).data).names)
    return {"names": plain(cfg)["editor"]["names"]} | ({"shared": shared} if shared else {})


def _score(cfg: DictConfig) -> list[dict[str, Any]]:
    """Score one folder of results, and say what is missing from it or belongs to no sample."""
    from gooddrag.bench.records import DONE
    from gooddrag.bench.results import Results

    results: Results = instantiate(cfg.editor)
    rows = _benchmark(cfg, "score", Path(text_of(cfg, "output") or "outputs/score"))
    absent = [row["name"] for row in rows if row["status"] != DONE]
    strangers = results.strangers([row["name"] for row in rows])
    if absent:
        print(f"without a score: {len(absent)} of {len(rows)} samples: {', '.join(absent)}")
    if strangers:
        print(f"belong to no sample: {len(strangers)} files or folders: {', '.join(strangers)}")
    return rows


def run_report(cfg: DictConfig) -> None:
    """gooddrag report."""
    from gooddrag.bench.reading import Experiment
    from gooddrag.bench.report import report_folder, write_report
    from gooddrag.bench.tables import Settings
    from gooddrag.callbacks.output import reserved

    folders = paths_of(cfg, "results", "which folders? Give gooddrag report DIR...")
    tables, experiment = plain(cfg)["tables"], None
    if cfg.only is not None:
        recipe = recipe_of(cfg.only, keep=("tables",))
        tables = recipe["tables"]
        experiment = Experiment(cfg.only, list(recipe["variants"]))
    output = Path(text_of(cfg, "output") or report_folder(folders[0], experiment))
    settings = Settings(**tables)
    with reserved(output, cfg.existing, owned=()):
        write_report(folders, output, settings, experiment)
    _say_where(output)


def run_pack(cfg: DictConfig) -> None:
    """gooddrag pack."""
    from gooddrag.bench.pack import ARCHIVE, pack

    folder, *others = paths_of(cfg, "results", "which folder? Give gooddrag pack DIR")
    if others:
        raise ValueError(f"one folder is packed at a time, found {len(others) + 1}")
    archive = Path(text_of(cfg, "output") or folder / ARCHIVE)
    count = pack(folder, archive, pictures=cfg.pictures, side=cfg.side)
    print(f"{count} records in {archive} ({archive.stat().st_size / 1e6:.1f} MB)")


def run_unpack(cfg: DictConfig) -> None:
    """gooddrag unpack."""
    from gooddrag.bench.pack import unpack

    folder = Path(text_of(cfg, "output") or "outputs/bench")
    for archive in paths_of(cfg, "results", "which archive? Give gooddrag unpack FILE"):
        came, known = unpack(archive, folder)
        print(f"{archive}: {came} records now in {folder}, {known} were there")


def run_tune(cfg: DictConfig) -> None:
    """gooddrag tune."""
    from gooddrag.bench.tune import begun, measured, tune
    from gooddrag.callbacks.output import prepare

    output = Path(text_of(cfg, "output") or "outputs/tune")
    prepare(output, "resume")
    settings = plain(cfg)
    seeds = f"seed={','.join(map(str, settings['seeds']))}"
    fixed = [*settings["bench"], f"output='{output.resolve()}'", "report=false"]
    if several := [word for word in settings["bench"] if _is_sweep(word)]:
        raise ValueError(
            f"bench= holds what all trials share, so one value each, found {several[0]!r}: what is "
            "to be tried goes into space="
        )

    def objective(chosen: dict[str, Any]) -> float:
        words, before = [f"{key}={value}" for key, value in chosen.items()], begun(output)
        # a process of its own: what one trial leaves in memory is no trouble to the next
        done = subprocess.run([sys.executable, sys.argv[0], "bench", "-m", *fixed, *words, seeds])
        if done.returncode == INTERRUPTED:
            raise KeyboardInterrupt
        if done.returncode != 0:
            raise ValueError(f"{' '.join(words)}: the benchmark ended with {done.returncode}")
        made = [run for run, time in begun(output).items() if before.get(run) != time]
        number = measured(made, settings["seeds"], settings["number"])
        print(f"{' '.join(words)}: {settings['number']} {number:.4g}", flush=True)
        return number

    study = tune(
        objective,
        space_of(settings["space"]),
        storage=settings["storage"] or f"sqlite:///{output.resolve() / 'study.db'}",
        **{key: settings[key] for key in ("study", "trials", "direction", "seed")},
    )
    best = " ".join(f"{key}={value}" for key, value in study.best_params.items())
    print(
        f"best of {len(study.trials)} trials: {settings['number']} {study.best_value:.4g}: {best}"
    )


def run_pretrain(cfg: DictConfig) -> None:
    """gooddrag pretrain."""
    instantiate(cfg)


COMMANDS: dict[str, tuple[str, Callable[[DictConfig], None], str]] = {
    "edit": ("edit", run_edit, "drag points of a picture to where they should go"),
    "adapt": ("adapt_only", run_adapt, "train a picture's LoRA and keep it"),
    "world": ("world", run_world, "render DragWorld samples with their true results"),
    "data": ("datasets", run_data, "say where data sets come from; check or convert a copy of one"),
    "bench": ("bench", run_bench, "run a method on a data set: records, pictures, a report"),
    "score": ("score", run_score, "score anybody's folder of results, with the same report"),
    "report": ("report", run_report, "tables and a page of what bench and score have left"),
    "pack": ("pack", run_pack, "the records of bench and score in one small archive"),
    "unpack": ("unpack", run_unpack, "add such an archive's records to those in a folder"),
    "tune": ("tune", run_tune, "let Optuna choose numbers by what bench finds"),
    "pretrain": ("pretrain", run_pretrain, "train the built-in model"),
}


def _benchmark(cfg: DictConfig, root: str, output: Path) -> list[dict[str, Any]]:
    """Run a method on a data set; of several processes, the first one reports.

    Returns:
        The rows of the run's records; none in a process that has only done its share.
    """
    from gooddrag.bench.records import DONE, rows_of
    from gooddrag.bench.report import report_folder
    from gooddrag.bench.results import check_origin
    from gooddrag.bench.runner import run_benchmark

    trainer, benchmark = benchmark_of(cfg, root, output)
    if root == "score":
        check_origin(benchmark.run, Path(text_of(cfg, "results") or ""))
    _say_what_loads(cfg)
    with restartable(output, benchmark.run.code):
        run_benchmark(trainer, benchmark)
    run = benchmark.run
    rows = rows_of(run.folder, run.names)
    if not trainer.is_global_zero:
        return []
    ok = sum(row["status"] == DONE for row in rows)
    print(f"{run.label}: {ok} of {len(rows)} samples done, records in {run.folder}/")
    if cfg.report:
        _say_where(report_folder(output, experiment_of(cfg)))
    return rows


def _is_sweep(word: str) -> bool:
    """Whether it holds several values: a trial would be several benchmarks."""
    try:
        return bool(space_of([word]))
    except ValueError:
        return False


def _need_one(rows: Sequence[Mapping[str, Any]]) -> None:
    """A run in which every sample has failed is an error.

    Raises:
        ValueError: so it is.
    """
    from gooddrag.bench.records import DONE

    if rows and all(row["status"] != DONE for row in rows):
        reason = rows[0].get("error") or rows[0]["status"]
        raise ValueError(f"no sample is done; the first, {rows[0]['name']}: {reason}")


def _say_where(report: Path) -> None:
    print(f"report: {report / 'report.html'} (and .md, .csv)")


def _check(samples: DragSet, about: dict[str, Any]) -> None:
    """Print what a copy of a data set holds, and how it differs from what is known of the set."""
    from gooddrag.data.check import compare, survey

    known = about.get("known", {})
    found, unread = survey(samples)
    differences = compare(found, known, whole=len(samples) == samples.total)
    checked = sum(name in known.get("checksums", {}) for name in found["checksums"])
    checksums = f"{checked} to compare with" if checked else ""
    print("found", *table(found | {"checksums": checksums}), sep="\n")
    if unread or differences:
        print(*unread, *differences, sep="\n")
        count = len(unread) + len(differences)
        raise ValueError(f"this is not {about['title']} as it should be: {count} findings, above")
    print("nothing differs from what is known" if known else "every sample can be read")


def _convert(cfg: DictConfig, samples: DragSet, output: Path) -> None:
    from gooddrag.callbacks.output import reserved
    from gooddrag.data.convert import convert

    with reserved(output, cfg.existing, owned=()):
        written, left = convert(
            samples, output, format=cfg.format, embed=cfg.embed, existing=cfg.existing
        )
    print(f"{written} samples in {output}/" + (f", {left} were there already" if left else ""))


def _uses_built_in_model(cfg: DictConfig) -> bool:
    """Whether the method edits with the model that comes with the package."""
    backbone = plain(cfg)["editor"].get("backbone")
    return isinstance(backbone, Mapping) and isinstance(backbone["path"], Mapping)


def _say_what_loads(cfg: DictConfig) -> None:
    """Downloads are silent, so that a person should know why nothing happens."""
    path = plain(cfg)["backbone"].get("path")
    if isinstance(path, str) and path.count("/") == 1 and not Path(path.split("/")[0]).exists():
        print(f"loading {path} (from the hub, if it is not here yet)", file=sys.stderr)
