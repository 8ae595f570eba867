"""The command line, and the only file that knows Hydra: compose, instantiate, run.

Torch and Hydra are imported where they are needed, so that help and typing errors come at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gooddrag.manual import HELP, notes_of, page
from gooddrag.settings import check_numbers

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from gooddrag.events import EditCallback
    from gooddrag.types import DragSample, Edit

EXPECTED = (ValueError, OSError, MemoryError)
BAD_INPUT, INTERRUPTED = 2, 130
SWEEP = ("-m", "--multirun")


# -- Python ------------------------------------------------------------------------------------


def load_method(name: str = "gooddrag", overrides: Sequence[str] = ()) -> Any:
    """A method as conf/ describes it, with its model loaded.

    Args:
        name: a recipe of conf/method.
        overrides: in Hydra's form, say ["backbone=sd15", "method.B=5", "schedule=drag_first"].

    Returns:
        A callable that takes samples and returns edits (`gooddrag.methods.base.Method`).

    Raises:
        ValueError: settings that cannot work, or a checkpoint that cannot be loaded.
    """
    words = [f"method={name}", *overrides]
    with composer() as compose:
        cfg = compose("edit", words)
        check_numbers(_unresolved(cfg), _unresolved(compose("edit", _groups_among(words))))
    return instantiate(cfg.editor)


def edit(
    sample: DragSample,
    method: Any = None,
    *,
    seed: int = 0,
    callbacks: Sequence[EditCallback] = (),
) -> Edit:
    """Perform one drag edit.

    Args:
        sample: the picture and its points.
        method: from `load_method`; None takes GoodDrag on the built-in model.
        seed: for methods that draw numbers.
        callbacks: hear about progress.

    Raises:
        ValueError: the sample does not fit the method.
    """
    method = method or load_method()
    return method([sample], seed=seed, callbacks=callbacks)[0]


# -- commands ----------------------------------------------------------------------------------


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


RESULTS = (
    "edited.png",
    "before_after.png",
    "drag.mp4",
    "drag.gif",
    "trajectory.json",
    "record.json",
    "metrics.csv",
)


def run_adapt(cfg: DictConfig) -> None:
    """gooddrag adapt."""
    from gooddrag.backbones.adapters import ADAPTER_FILE, save_adapter
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


def run_pretrain(cfg: DictConfig) -> None:
    """gooddrag pretrain."""
    instantiate(cfg)


COMMANDS: dict[str, tuple[str, Callable[[DictConfig], None], str]] = {
    "edit": ("edit", run_edit, "drag points of a picture to where they should go"),
    "adapt": ("adapt_only", run_adapt, "train a picture's LoRA and keep it"),
    "world": ("world", run_world, "render DragWorld samples with their true results"),
    "pretrain": ("pretrain", run_pretrain, "train the built-in model"),
}


# -- from configuration to objects -------------------------------------------------------------


def instantiate(cfg: DictConfig, **overrides: Any) -> Any:
    """Make what a node describes; a part's own ValueError comes through as it is.

    Raises:
        ValueError: a part refused its settings.
    """
    import hydra
    from hydra.errors import InstantiationException

    try:
        return hydra.utils.instantiate(cfg, _convert_="all", **overrides)
    except InstantiationException as error:
        cause: BaseException | None = error
        while isinstance(cause, InstantiationException):
            cause = cause.__cause__
        if isinstance(cause, EXPECTED) or _out_of_memory(cause):
            raise cause from None  # type: ignore[misc]
        if isinstance(cause, TypeError) and not os.environ.get("GOODDRAG_DEBUG"):
            raise ValueError(f"these settings cannot work ({cause}): see --help") from error
        raise


def callbacks_of(cfg: DictConfig) -> list[EditCallback]:
    """The callbacks and loggers of the configuration; partial ones are given all of it."""
    from gooddrag.events import EditCallback

    nodes = [*cfg.get("callbacks", {}).values(), *cfg.get("logger", {}).values()]
    made = [instantiate(node) for node in nodes if node is not None]
    # the files come before the loggers, which show them
    return [item if isinstance(item, EditCallback) else item(config=plain(cfg)) for item in made]


def sample_of(cfg: DictConfig, needs_points: bool = True) -> DragSample:
    """The picture that the configuration names, or the demo.

    Raises:
        ValueError: contradicting or incomplete input.
    """
    from gooddrag.data.folder import make_sample, read_sample
    from gooddrag.data.world import world_sample

    folder, image, mask = (text_of(cfg, key) for key in ("sample", "image", "mask"))
    points = plain(cfg).get("points")
    if folder is not None and not image is mask is points is None:
        raise ValueError("give either sample=DIR or image=FILE with points (and mask), not both")
    if folder is not None:
        sample = read_sample(folder)
        return sample if cfg.prompt is None else replace(sample, prompt=str(cfg.prompt))
    if image is None:
        if points is not None or mask is not None:
            raise ValueError("points and mask need a picture: give image=FILE as well")
        return world_sample(cfg.demo.split, cfg.demo.seed, cfg.demo.index)
    if points is None and needs_points:
        raise ValueError("which points? Give 'points=[[handle x,y],[target x,y],...]' in pixels")
    # a LoRA needs no points; two corners stand in, since a sample has some
    points = points if points is not None else [[0, 0], [1, 1]]
    return make_sample(image, points, mask, prompt="" if cfg.prompt is None else str(cfg.prompt))


def output_of(cfg: DictConfig, name: str) -> Path:
    """The folder of the results: as given (one below it for each job of a sweep), or a new one."""
    given = text_of(cfg, "output")
    job = _job_of_sweep()
    if given is not None:
        return Path(given) / job
    base = Path("outputs") / f"{'sweep' if job else name[:80]}_{_started():%Y-%m-%d_%H-%M-%S}"
    return base / job if job else _unused(base)


def text_of(cfg: DictConfig, key: str) -> str | None:
    """A path of the configuration; `~` is the home folder, which shells leave in image=~/cat.jpg.

    Raises:
        ValueError: a list or a mapping.
    """
    value = plain(cfg).get(key)
    if isinstance(value, (list, dict)):
        raise ValueError(f"{key} must be one path, found {value}")
    return None if value is None else os.path.expanduser(str(value))


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as a dictionary."""
    from omegaconf import OmegaConf

    content: Any = OmegaConf.to_container(cfg, resolve=True)
    return content


def _unresolved(cfg: DictConfig) -> dict[str, Any]:
    """The same where a setting that refers to another is left as text."""
    from omegaconf import OmegaConf

    content: Any = OmegaConf.to_container(cfg)
    return content


@cache
def _started() -> datetime:
    """One time for all jobs of a sweep."""
    return datetime.now()


def _job_of_sweep() -> str:
    """The job's number in a sweep, else ""."""
    from hydra.core.hydra_config import HydraConfig

    config = HydraConfig.get()
    sweeping = config.mode is not None and config.mode.name == "MULTIRUN"
    return str(config.job.num) if sweeping else ""


def _unused(folder: Path) -> Path:
    """The folder, or with a number behind its name if it exists."""
    candidates = (folder, *(folder.with_name(f"{folder.name}_{i}") for i in range(2, 1000)))
    return next(path for path in candidates if not path.exists())


def _say_what_loads(cfg: DictConfig) -> None:
    """Downloads are silent, so that a person should know why nothing happens."""
    path = plain(cfg)["backbone"].get("path")
    if isinstance(path, str) and path.count("/") == 1 and not Path(path.split("/")[0]).exists():
        print(f"loading {path} (from the hub, if it is not here yet)", file=sys.stderr)


# -- Hydra -------------------------------------------------------------------------------------


@contextmanager
def composer() -> Iterator[Callable[[str, Sequence[str]], DictConfig]]:
    """Yield a function that composes a root of conf/ with overrides, and leave no trace.

    Raises:
        ValueError: from the function, for what Hydra cannot compose.
    """
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    def composed(root: str, overrides: Sequence[str]) -> DictConfig:
        try:
            return compose(root, overrides=list(overrides))
        except Exception as error:
            raise ValueError(explain(error) or str(error)) from error

    GlobalHydra.instance().clear()
    with initialize_config_module("gooddrag.conf", version_base="1.3"):
        yield composed


def help_of(command: str, overrides: Sequence[str]) -> str:
    """The command's groups and numbers, with the remarks that stand in conf/."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    root, _, summary = COMMANDS[command]
    with composer() as compose:
        settings: Any = OmegaConf.to_container(compose(root, overrides))
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
        cfg = loader.load_configuration(root, list(overrides), RunMode.RUN)
        chosen = {k: v for k, v in cfg.hydra.runtime.choices.items() if not k.startswith("hydra/")}
        groups = {name: loader.get_group_options(name) for name in sorted(chosen)}
    conf = files("gooddrag.conf")
    notes = notes_of("", [(conf / f"{name}.yaml").read_text() for name in (root, "base")])
    for name, options in groups.items():
        order = sorted(options, key=lambda option: option != chosen.get(name))
        notes |= notes_of(name, [(conf / name / f"{o}.yaml").read_text() for o in order])
    return page(command, summary, groups, chosen, settings, notes)


def _groups_among(overrides: Sequence[str]) -> list[str]:
    """The overrides that choose a file of conf/."""
    conf = files("gooddrag.conf")
    return [o for o in overrides if (conf / o.partition("=")[0].strip("+~/")).is_dir()]


def _check_job(cfg: DictConfig, root: str) -> None:
    """`check_numbers` within a job of Hydra's."""
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig

    choices = HydraConfig.get().runtime.choices.items()
    groups = [f"{name}={option}" for name, option in choices if option and "hydra/" not in name]
    check_numbers(_unresolved(cfg), _unresolved(compose(root, overrides=groups)))


# -- entry -------------------------------------------------------------------------------------


def main() -> None:
    """The console script: exit status 2 for bad input, 130 for Ctrl-C."""
    try:
        status = dispatch(sys.argv[1:])
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:  # the reader of `gooddrag --help | head` has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    raise SystemExit(status)


def dispatch(arguments: Sequence[str]) -> int:
    """Find the command and run it.

    Returns:
        The exit status.
    """
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if command in ("-V", "--version"):
        from gooddrag import __version__

        print(f"gooddrag {__version__}")
        return 0
    if command not in COMMANDS:
        known = ", ".join(COMMANDS)
        return _fail(f"there is no command {command!r}; known are {known} (see gooddrag --help)")
    with _explained() as statuses:
        if "-h" in rest or "--help" in rest:
            print(help_of(command, [word for word in rest if not word.startswith("-")]), end="")
        else:
            statuses += run_command(command, rest)
    return max(statuses, default=0)


def run_command(command: str, arguments: Sequence[str]) -> list[int]:
    """Let Hydra run a command, once or for each job of a sweep.

    Returns:
        The exit statuses of the jobs that failed; the others of a sweep are run all the same.
    """
    import hydra

    quiet_libraries()
    root, task, _ = COMMANDS[command]
    failures: list[int] = []

    def job(cfg: DictConfig) -> None:
        with _explained() as statuses:
            _check_job(cfg, root)
            task(cfg)
        failures.extend(statuses)

    entry = hydra.main(version_base="1.3", config_path="pkg://gooddrag.conf", config_name=root)(job)
    before = sys.argv
    with tempfile.TemporaryDirectory() as scratch:
        sweeping = any(word in SWEEP for word in arguments)
        extra = [f"hydra.sweep.dir='{scratch}'"] if sweeping else []  # for its multirun.yaml
        sys.argv = [f"gooddrag {command}", *arguments, *extra]
        try:
            entry()
        finally:
            sys.argv = before
    return failures


@contextmanager
def _explained() -> Iterator[list[int]]:
    """Turn what a user can mend into one line; yields a list that then holds the exit status.

    Ctrl-C is a line too, and ends everything. With GOODDRAG_DEBUG all exceptions come through.
    """
    statuses: list[int] = []
    try:
        yield statuses
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        line = explain(error)
        if line is None or os.environ.get("GOODDRAG_DEBUG"):
            raise
        statuses.append(_fail(line))


def explain(error: BaseException) -> str | None:
    """One line for what a user can mend: what was found and what to do. None for a defect."""
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    line = " ".join(str(error).split()) or type(error).__name__
    if _out_of_memory(error):
        return (
            "out of memory: set backbone.low_memory=true, make the picture smaller, or take "
            f"backbone.dtype=bfloat16 ({line[:160]})"
        )
    if isinstance(error, MissingMandatoryValue):
        key = str(error.full_key).removeprefix("editor.")
        return f"{key} is missing: give {key}=..."
    if isinstance(error, OverrideParseException):
        return f"""{line} (special characters need quotes of their own: 'image="my (1).jpg"')"""
    if isinstance(error, HydraException):
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else ""
        return " ".join(f"{line} {cause}".split()) + " (--help shows all settings)"
    if isinstance(error, (*EXPECTED, OmegaConfBaseException)):
        return line
    return None


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether a device, or the machine, had no memory left."""
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return BAD_INPUT


def quiet_libraries() -> None:
    """Keep the libraries' notices out of the terminal, best before they are imported."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions come to `_explained`
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "critical")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "transformers", "diffusers", "httpx"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in ("transformers", "diffusers"):
        if library := sys.modules.get(f"{name}.utils.logging"):
            library.disable_progress_bar()
