"""The commands: each takes its composed configuration, leaves files and prints where they are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gooddrag.api import edit
from gooddrag.composition import instantiate, plain
from gooddrag.request import callbacks_of, output_of, sample_of, text_of

if TYPE_CHECKING:
    from gooddrag.composition import DictConfig

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


def run_pretrain(cfg: DictConfig) -> None:
    """gooddrag pretrain."""
    instantiate(cfg)


COMMANDS: dict[str, tuple[str, Callable[[DictConfig], None], str]] = {
    "edit": ("edit", run_edit, "drag points of a picture to where they should go"),
    "adapt": ("adapt_only", run_adapt, "train a picture's LoRA and keep it"),
    "world": ("world", run_world, "render DragWorld samples with their true results"),
    "pretrain": ("pretrain", run_pretrain, "train the built-in model"),
}


def _say_what_loads(cfg: DictConfig) -> None:
    """Downloads are silent, so that a person should know why nothing happens."""
    path = plain(cfg)["backbone"].get("path")
    if isinstance(path, str) and path.count("/") == 1 and not Path(path.split("/")[0]).exists():
        print(f"loading {path} (from the hub, if it is not here yet)", file=sys.stderr)
