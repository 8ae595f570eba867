"""The jobs that a command line asks for: one, a sweep of Hydra's, or all variants of experiments.

A recipe of conf/experiment may hold `variants`, names with the overrides that make each: the rows
of a table. `variant=NAME` picks one, `-m` runs all.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gooddrag.composition import composer, plain, unresolved
from gooddrag.settings import check_numbers

if TYPE_CHECKING:
    from omegaconf import DictConfig

Composing = Callable[[], "DictConfig"]
SWEEP = ("-m", "--multirun")
SEARCHED = "hydra.searchpath="
NAME = re.compile(r"[A-Za-z][\w.+-]*")  # of a variant: Hydra reads it without quotes


@dataclass(frozen=True)
class Job:
    """What the command line, or the sweep, has asked of the job that runs now.

    Attributes:
        overrides: those of the variant among them.
        choices: the option that each group has.
        number: in a sweep, else "".
        searched: where Hydra looks for files of conf/ besides, as overrides.
    """

    overrides: Sequence[str]
    choices: Mapping[str, str]
    number: str = ""
    searched: Sequence[str] = ()


_now: Job | None = None


def present_job() -> Job:
    """The job that runs now.

    Raises:
        ValueError: none does.
    """
    if _now is None:
        raise ValueError("there is no job: this is for commands that Hydra runs")
    return _now


def run_jobs(
    root: str, job: Callable[[Composing], None], program: str, arguments: Sequence[str]
) -> None:
    """Let Hydra run each job, of one sweep or of several.

    Args:
        root: of conf/, that jobs are composed from.
        job: is given a function that composes its configuration, so that it hears what is wrong.
        program: as help calls it, say "gooddrag bench".
        arguments: of the command line.
    """
    import hydra

    from gooddrag.backbones.shared import next_job, sharing

    before = sys.argv

    def alone(cfg: DictConfig) -> None:
        def begin() -> DictConfig:
            next_job()
            composed = _enter(root, cfg)
            # what Lightning starts again for each further device is this job, not the whole sweep
            sys.argv = [before[0], program.partition(" ")[2], *present_job().overrides]
            return composed

        job(begin)

    main = hydra.main(version_base="1.3", config_path="pkg://gooddrag.conf", config_name=root)
    entry = main(alone)
    with tempfile.TemporaryDirectory() as scratch, sharing():
        for words in sweeps_of(root, arguments):
            sweeping = any(word in SWEEP for word in words)
            extra = [f"hydra.sweep.dir='{scratch}'"] if sweeping else []  # for its multirun.yaml
            sys.argv = [program, *words, *extra]
            try:
                entry()
            finally:
                sys.argv = before


def _enter(root: str, cfg: DictConfig) -> DictConfig:
    """Make a job the present one; its configuration.

    At the module's top: a launcher sends the functions in `run_jobs` to other processes, together
    with copies of the module's variables.
    """
    global _now
    composed, _now = _composed(root, cfg)
    return composed


def sweeps_of(root: str, arguments: Sequence[str]) -> list[list[str]]:
    """The command line of each sweep: for every experiment one over all of its variants.

    Raises:
        ValueError: an experiment that does not exist, or that Hydra cannot compose; a setting by
            hand that its variants differ in.
    """
    chosen = [word for word in arguments if word.startswith("experiment=")]
    searched = [word for word in arguments if word.startswith(SEARCHED)]
    picked = any(word.startswith("variant=") for word in arguments)
    if not chosen or picked or not any(word in SWEEP for word in arguments):
        return [list(arguments)]
    rest = [word for word in arguments if word not in chosen]
    sweeps = []
    for name in chosen[-1].partition("=")[2].split(","):
        found = variants_of(root, name, searched)
        _check_varied(name, found, rest)
        variants = ",".join(found)
        words = [f"experiment={name}", *([f"variant={variants}"] if variants else [])]
        sweeps.append([*rest, *words])
    return sweeps


def _check_varied(
    experiment: str, variants: Mapping[str, Sequence[str]], given: Sequence[str]
) -> None:
    """Refuse to set for all rows of a table what they differ in: some of them would be one.

    Raises:
        ValueError: a setting that is given and varied.
    """
    varied = {_key(word): name for name, words in variants.items() for word in words}
    for key in map(_key, given):
        if key in varied:
            raise ValueError(
                f"{key} is what {experiment} varies: leave it out, or do one row alone, "
                f"say variant={varied[key]}"
            )


def variants_of(
    root: str, experiment: str, searched: Sequence[str] = ()
) -> Mapping[str, Sequence[str]]:
    """An experiment's variants, the overrides of each by its name, in the recipe's order.

    Args:
        root: of conf/.
        experiment: the recipe.
        searched: see `Job`.

    Raises:
        ValueError: no such experiment, or a name that Hydra would need quotes for.
    """
    with composer() as compose:
        recipe = unresolved(compose(root, [f"experiment={experiment}", *searched]))
    variants: Mapping[str, Sequence[str]] = recipe.get("variants", {})
    for name in variants:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"{experiment} calls a variant {name!r}: names begin with a letter and have "
                "letters, digits and _.+- only"
            )
    return variants


def check_job(cfg: DictConfig, root: str) -> None:
    """`check_numbers` within a job."""
    check_numbers(unresolved(cfg), unresolved(options_of_job(root)))


def options_of_job(root: str, without: Sequence[str] = ()) -> DictConfig:
    """What the options of the present job's groups compose to by themselves.

    Args:
        root: of conf/.
        without: groups that are left as they are.
    """
    from hydra import compose

    choices = present_job().choices.items()
    groups = [
        f"{name}={option}"
        for name, option in choices
        if option and "hydra/" not in name and name not in without
    ]
    return compose(root, overrides=[*groups, *present_job().searched])


def recipe_of(experiment: str, keep: Sequence[str]) -> dict[str, Any]:
    """Within a job: what the benchmark composes to with an experiment.

    Args:
        experiment: a recipe of conf/experiment.
        keep: what the job's own overrides begin with that hold there, too.
    """
    from hydra import compose

    job = present_job()
    own = [word for word in job.overrides if word.startswith(tuple(keep))]
    return plain(compose("bench", overrides=[f"experiment={experiment}", *own, *job.searched]))


def _composed(root: str, cfg: DictConfig) -> tuple[DictConfig, Job]:
    """The job's configuration, with the overrides of its variant, and the job."""
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    hydra = HydraConfig.get()
    given, sweeping = list(hydra.overrides.task), hydra.mode and hydra.mode.name == "MULTIRUN"
    number = str(hydra.job.num) if sweeping else ""
    searched = [word for word in hydra.overrides.hydra if word.startswith(SEARCHED)]
    if not cfg.get("variants"):
        return cfg, Job(given, dict(hydra.runtime.choices), number, searched)
    words = _with_variant(plain(cfg.variants), cfg.variant, given)
    varied = compose(root, overrides=[*words, *searched], return_hydra_config=True)
    choices = dict(varied.hydra.runtime.choices)
    with open_dict(varied):
        del varied["hydra"]
    return varied, Job(words, choices, number, searched)


def _with_variant(
    variants: Mapping[str, Sequence[str]], chosen: str | None, given: Sequence[str]
) -> list[str]:
    """The job's overrides with its variant's before them; what was given by hand wins.

    Raises:
        ValueError: none was chosen, or one that there is not.

    >>> _with_variant({"B5": ["method.B=5", "method.K=70"]}, "B5", ["seed=1", "method.K=7"])
    ['method.B=5', 'seed=1', 'method.K=7']
    """
    if chosen is None or chosen not in variants:
        listed = ", ".join(variants)
        found = "none was chosen" if chosen is None else f"found {chosen!r}"
        raise ValueError(
            f"{found}: take -m for all of this experiment, or variant= one of {listed}"
        )
    keys = {_key(word) for word in given}
    return [*(word for word in variants[chosen] if _key(word) not in keys), *given]


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")
