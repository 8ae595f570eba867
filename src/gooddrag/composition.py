"""From conf/ to objects: compose, instantiate, explain. Hydra is known here and in jobs.py only.

Hydra is imported where it is needed, so that help and typing errors come at once.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

from gooddrag.memory import out_of_memory

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from gooddrag.bench.tune import Range

EXPECTED = (ValueError, OSError, MemoryError)


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


def instantiate(cfg: DictConfig | dict[str, Any], **overrides: Any) -> Any:
    """Make what a node describes; a part's own ValueError comes through as it is.

    Raises:
        ValueError: a part refused its settings, or one is missing.
    """
    import hydra
    from hydra.errors import InstantiationException
    from omegaconf.errors import MissingMandatoryValue

    try:
        return hydra.utils.instantiate(cfg, _convert_="all", **overrides)
    except MissingMandatoryValue as error:
        raise ValueError(explain(error)) from None
    except InstantiationException as error:
        cause: BaseException | None = error
        while isinstance(cause, InstantiationException):
            cause = cause.__cause__
        if isinstance(cause, EXPECTED) or out_of_memory(cause):
            raise cause from None  # type: ignore[misc]
        if isinstance(cause, TypeError) and not os.environ.get("GOODDRAG_DEBUG"):
            raise ValueError(f"these settings cannot work ({cause}): see --help") from error
        raise


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as a dictionary."""
    from omegaconf import OmegaConf

    content: Any = OmegaConf.to_container(cfg, resolve=True)
    return content


def plain_with(cfg: DictConfig, **changes: Any) -> dict[str, Any]:
    """The resolved configuration as it would be with other values at its top."""
    from omegaconf import OmegaConf

    other = OmegaConf.merge(cfg, changes)
    return plain(other)  # type: ignore[arg-type]


def with_changes(cfg: DictConfig, changes: dict[str, Any]) -> DictConfig:
    """The configuration with other values, of which some may be new; a mapping is replaced."""
    from omegaconf import OmegaConf

    other = copy.deepcopy(cfg)
    OmegaConf.set_struct(other, False)
    for key, value in changes.items():
        OmegaConf.update(other, key, value, merge=False)
    return other


def unresolved(cfg: DictConfig) -> dict[str, Any]:
    """The same where a setting that refers to another is left as text."""
    from omegaconf import OmegaConf

    content: Any = OmegaConf.to_container(cfg)
    return content


def groups_among(overrides: Sequence[str]) -> list[str]:
    """The overrides that choose a file of conf/."""
    conf = files("gooddrag.conf")
    return [o for o in overrides if (conf / o.partition("=")[0].strip("+~/")).is_dir()]


def choices_of(
    root: str, overrides: Sequence[str]
) -> tuple[dict[str, Any], dict[str, list[str]], dict[str, str]]:
    """What a root of conf/ composes to, unresolved, the options of its groups, and those chosen."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    with composer() as compose:
        settings = unresolved(compose(root, overrides))
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        loader = hydra.config_loader
        cfg = loader.load_configuration(root, list(overrides), RunMode.RUN)
        chosen = {k: v for k, v in cfg.hydra.runtime.choices.items() if not k.startswith("hydra/")}
        groups = {name: loader.get_group_options(name) for name in sorted(chosen)}
    return settings, groups, chosen


def each_option(root: str, group: str) -> dict[str, dict[str, Any]]:
    """Within a job of Hydra's: what a root of conf/ composes to with each option of a group."""
    from hydra import compose
    from hydra.core.global_hydra import GlobalHydra

    options = GlobalHydra.instance().config_loader().get_group_options(group)
    return {name: unresolved(compose(root, overrides=[f"{group}={name}"])) for name in options}


def space_of(words: Sequence[str]) -> dict[str, Range | list[Any]]:
    """What Hydra's words for sweeps say: interval, range, choice, and log as their tag.

    Raises:
        ValueError: a word that says one value only, or that Hydra does not know.

    >>> space_of(["method.r1=range(1, 7)", "schedule=choice(aldd, spread)"])
    {'method.r1': Range(low=1, high=6, whole=True, log=False), 'schedule': ['aldd', 'spread']}
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
    from hydra.errors import HydraException

    from gooddrag.bench.tune import Range

    found: dict[str, Range | list[Any]] = {}
    for word in words:
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException as error:
            raise ValueError(explain(error)) from None
        key, value = override.get_key_element(), override.value()
        if isinstance(value, IntervalSweep):
            low, high = cast(float, value.start), cast(float, value.end)
            found[key] = Range(low, high, False, "log" in value.tags)
        elif isinstance(value, RangeSweep) and value.step == 1:
            low, end = cast(int, value.start), cast(int, value.stop)
            found[key] = Range(low, end - 1, True, "log" in value.tags)
        elif isinstance(value, ChoiceSweep):
            found[key] = list(value.list)
        else:
            raise ValueError(
                f"{word!r} says no range to tune in: write interval(low, high), range(first, end) "
                "or choice(a, b)"
            )
    return found


def explain(error: BaseException) -> str | None:
    """One line for what a user can mend: what was found and what to do. None for a defect."""
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    line = " ".join(str(error).split()) or type(error).__name__
    if out_of_memory(error):
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
        # without where Hydra looked: all of it is in the package
        line = re.sub(r"^In '\w+': | Config search path: .*", "", line)
        if "is not in struct" in str(cause):  # Hydra would have it appended, which never helps
            told = line.partition(". To append")[0]
            return f"{told}: there is no such setting with these choices (--help behind them: all)"
        return " ".join(f"{line} {cause}".split()) + " (--help shows all settings)"
    if isinstance(error, (*EXPECTED, OmegaConfBaseException)):
        return line
    return None
