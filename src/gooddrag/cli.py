"""The command line, and the only file that knows Hydra: compose, instantiate, run."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gooddrag.events import EditCallback, Phases
from gooddrag.types import DragSample, Edit

HELP = """\
gooddrag: click a point, click where it should go, and the picture follows.

  gooddrag edit                     edit a built-in demo picture with the built-in model
  gooddrag edit image=cat.jpg mask=mask.png 'points=[[147,67],[202,46]]'
  gooddrag edit sample=DIR          a folder in Drag100 form: original.jpg, mask.png, points.json
  gooddrag adapt image=cat.jpg      only train the picture's LoRA and keep it
  gooddrag world count=10 output=DIR        render DragWorld samples with their true results
  gooddrag pretrain stage=vae output=DIR    train the built-in model

  Points are pixels, handle and target in turn; in the mask white may change, and without one
  everything may. The built-in model knows DragWorld's illustrations only; for photographs:
    backbone=sd15                   Stable Diffusion 1.5 from the hub (sd21 likewise)
    backbone=folder backbone.path=DIR       any Stable Diffusion 1.x or 2.x in diffusers layout

  Every number is an override, every part a group, and -m sweeps over them:
    gooddrag edit method.B=5 method.lr=0.01 schedule=drag_first output=DIR
    gooddrag edit -m schedule=aldd,drag_first method.J=1,3 logger=csv

  Results go to a new folder below outputs/, or to output=DIR. A folder that holds a result is
  left alone unless existing=overwrite or existing=resume.
  gooddrag COMMAND --help shows the command's groups and all its numbers.
"""

EXPECTED = (ValueError, OSError, MemoryError)


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
    GlobalHydra.instance().clear()
    with initialize_config_module("gooddrag.conf", version_base="1.3"):
        cfg = compose("edit", overrides=[f"method={name}", *overrides])
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
    from gooddrag.callbacks import done_already, prepare

    sample = sample_of(cfg)
    cfg.output = str(output_of(cfg, sample.name))
    config = OmegaConf.to_container(cfg, resolve=True)
    if cfg.existing == "resume" and done_already(cfg.output, config, sample):
        print(f"{cfg.output}: done already")
        return
    prepare(cfg.output, cfg.existing)
    callbacks = callbacks_of(cfg)
    method = instantiate(cfg.editor)
    edit(sample, method, seed=cfg.seed, callbacks=callbacks)
    print(f"results: {cfg.output}/  (look at before_after.png)")


def run_adapt(cfg: DictConfig) -> None:
    """gooddrag adapt."""
    from gooddrag.backbones.adapters import ADAPTER_FILE, save_adapter
    from gooddrag.callbacks import prepare

    sample = sample_of(cfg, needs_points=False)
    folder = output_of(cfg, sample.name)
    prepare(folder, "overwrite")
    if cfg.existing == "refuse" and (folder / ADAPTER_FILE).exists():
        raise ValueError(f"{folder} already holds a LoRA: give another output, or existing=overwrite")
    backbone, adapt = instantiate(cfg.backbone), instantiate(cfg.adapt)
    adapters = adapt(backbone, [sample], Phases(callbacks_of(cfg)))
    if not adapters:
        raise ValueError("nothing to train: take adapt=lora")
    print(f"LoRA: {save_adapter(adapters[0], folder)}")


def run_world(cfg: DictConfig) -> None:
    """gooddrag world."""
    from gooddrag.data.world import write_world

    if cfg.output is None:
        cfg.output = f"outputs/world_{cfg.split}_{cfg.seed}"
    write_world(
        Path(cfg.output),
        split=cfg.split,
        seed=cfg.seed,
        indices=range(cfg.start, cfg.start + cfg.count),
        size=cfg.size,
        sheet=cfg.sheet,
        overwrite=cfg.existing == "overwrite",
    )
    print(f"samples: {cfg.output}/")


def run_pretrain(cfg: DictConfig) -> None:
    """gooddrag pretrain."""
    instantiate(cfg)


COMMANDS: dict[str, tuple[str, Callable[[DictConfig], None]]] = {
    "edit": ("edit", run_edit),
    "adapt": ("adapt_only", run_adapt),
    "world": ("world", run_world),
    "pretrain": ("pretrain", run_pretrain),
}


# -- from configuration to objects -------------------------------------------------------------


def instantiate(cfg: DictConfig, **overrides: Any) -> Any:
    """Make what a node describes; a part's own ValueError comes through as it is.

    Raises:
        ValueError: a part refused its settings.
    """
    try:
        return hydra.utils.instantiate(cfg, _convert_="all", **overrides)
    except InstantiationException as error:
        cause: BaseException | None = error
        while isinstance(cause, InstantiationException):
            cause = cause.__cause__
        if isinstance(cause, EXPECTED):
            raise cause from None
        raise


def callbacks_of(cfg: DictConfig) -> list[EditCallback]:
    """The callbacks and loggers of the configuration; partial ones are given all of it."""
    config = OmegaConf.to_container(cfg, resolve=True)
    nodes = [*cfg.get("callbacks", {}).values(), *cfg.get("logger", {}).values()]
    made = [instantiate(node) for node in nodes if node is not None]
    # the files come before the loggers, which show them
    return [item if isinstance(item, EditCallback) else item(config=config) for item in made]


def sample_of(cfg: DictConfig, needs_points: bool = True) -> DragSample:
    """The picture that the configuration names, or the demo.

    Raises:
        ValueError: contradicting or incomplete input.
    """
    from gooddrag.data.folder import make_sample, read_sample
    from gooddrag.data.world import world_sample

    points, mask = cfg.get("points"), cfg.get("mask")
    if cfg.sample is not None and (cfg.image is not None or points is not None or mask is not None):
        raise ValueError("give either sample=DIR or image=FILE with points (and mask), not both")
    if cfg.sample is not None:
        sample = read_sample(cfg.sample)
        return sample if cfg.prompt is None else replace(sample, prompt=cfg.prompt)
    if cfg.image is None:
        if points is not None or mask is not None:
            raise ValueError("points and mask need a picture: give image=FILE as well")
        return world_sample(cfg.demo.split, cfg.demo.seed, cfg.demo.index)
    if points is None and needs_points:
        raise ValueError("which points? Give 'points=[[handle x,y],[target x,y],...]' in pixels")
    plain = OmegaConf.to_container(points) if OmegaConf.is_config(points) else points
    # a LoRA needs no points; two corners stand in, since a sample has some
    plain = plain if plain is not None else [[0, 0], [1, 1]]
    return make_sample(cfg.image, plain, mask, prompt=cfg.prompt or "")


def output_of(cfg: DictConfig, name: str) -> Path:
    """The folder of the results: as given (one below it for each job of a sweep), or a new one."""
    hydra_config = HydraConfig.get()
    sweeping = hydra_config.mode is not None and hydra_config.mode.name == "MULTIRUN"
    job = f"{hydra_config.job.num}" if sweeping else ""
    if cfg.output is not None:
        return Path(cfg.output) / job
    base = Path("outputs") / f"{name}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    return base / job if job else _unused(base)


def _unused(folder: Path) -> Path:
    """The folder, or with a number behind its name if it exists."""
    candidates = (folder, *(folder.with_name(f"{folder.name}_{i}") for i in range(2, 1000)))
    return next(path for path in candidates if not path.exists())


# -- entry -------------------------------------------------------------------------------------


def main() -> None:
    """The console script: exit status 2 for bad input, 130 for Ctrl-C."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if arguments[0] in ("-V", "--version"):
        from gooddrag import __version__

        print(f"gooddrag {__version__}")
        return
    command = arguments[0]
    if command not in COMMANDS:
        _fail(f"there is no command {command!r}; known are {', '.join(COMMANDS)} (see gooddrag --help)")
    sys.argv = [f"gooddrag {command}", *arguments[1:]]
    config_name, task = COMMANDS[command]
    quiet_libraries()
    started: list[bool] = []

    def job(cfg: DictConfig) -> None:
        started.append(True)
        _guarded(task, cfg)

    try:
        hydra.main(version_base="1.3", config_path="pkg://gooddrag.conf", config_name=config_name)(job)()
    except SystemExit as stop:
        # Hydra ends with 1 when it cannot compose: that is bad input as well
        raise SystemExit(2 if stop.code == 1 and not started else stop.code) from None


def _guarded(task: Callable[[DictConfig], None], cfg: DictConfig) -> None:
    """Run a command; what a user can mend becomes one line."""
    if os.environ.get("GOODDRAG_DEBUG"):
        task(cfg)
        return
    try:
        task(cfg)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except (*EXPECTED, OmegaConfBaseException) as error:
        _fail(" ".join(str(error).split()) or type(error).__name__)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def quiet_libraries() -> None:
    """Keep the libraries' notices out of the terminal; errors still come through."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "transformers", "diffusers", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
