"""What the command line says about itself; text only, so that it comes at once."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HELP = """\
gooddrag: click a point, click where it should go, and the picture follows.

  gooddrag edit                     edit a built-in demo picture with the built-in model
  gooddrag edit image=cat.jpg mask=mask.png 'points=[[147,67],[202,46]]'
  gooddrag edit sample=DIR          a folder in Drag100 form: original.jpg, mask.png, points.json
  gooddrag adapt image=cat.jpg      only train the picture's LoRA and keep it
  gooddrag world count=10 output=DIR        render DragWorld samples with their true results
  gooddrag data                     where benchmarks come from; check or convert a copy of one
  gooddrag bench data=world method=gooddrag   a method on a data set: records, pictures, a report
  gooddrag score results=DIR data=drag100 data.root=DIR     score anybody's results likewise
  gooddrag report DIR...            tables and a page of all that these have left below the folders
  gooddrag bench -m experiment=03_lora    a question of experiments/: a run for each of its variants
  gooddrag pack DIR                 their records in one small archive
  gooddrag unpack FILE output=DIR   add an archive's records to those in a folder
  gooddrag tune                     let Optuna choose numbers by what bench finds
  gooddrag pretrain stage=vae output=DIR    train the built-in model

  Points are pixels, handle and target in turn; in the mask white may change, and without one
  everything may. The built-in model knows DragWorld's illustrations only; for photographs:
    backbone=sd15                   Stable Diffusion 1.5 from the hub (sd21 likewise)
    backbone=folder backbone.path=DIR       any Stable Diffusion 1.x or 2.x in diffusers layout

  Every number is an override, every part a group, and -m sweeps over them:
    gooddrag edit method.B=5 method.lr=0.01 schedule=drag_first output=DIR
    gooddrag edit -m schedule=aldd,drag_first method.J=1,3 logger=csv
    gooddrag edit method=dragdiffusion        or any other method of docs/methods.md

  Results go to a new folder below outputs/, or to output=DIR. A folder that holds a result is
  left alone unless existing=overwrite or existing=resume.
  gooddrag COMMAND --help shows the command's groups and all its numbers.
"""

WIRING = ("editor", "about", "_target_", "_partial_", "_convert_")


def page(
    command: str,
    summary: str,
    groups: Mapping[str, Sequence[str]],
    chosen: Mapping[str, str],
    settings: Mapping[str, Any],
    notes: Mapping[tuple[str, str], str],
) -> str:
    """The help page of one command.

    Args:
        command: its name.
        summary: what it does, in a line.
        groups: the options of each group.
        chosen: the option that each group has now.
        settings: the composed configuration, interpolations unresolved.
        notes: a remark for a setting, by its group ("" at the top) and name.
    """
    lines = [f"gooddrag {command} [key=value ...]: {summary}", ""]
    if groups:
        lines += ["Groups (group=option; * is chosen)"]
        for name in groups:
            lines += _wrapped(f"  {name:<14}{_options(groups[name], chosen.get(name))}", 16)
        lines += [""]
    lines += ["Settings (any of them can be given as key=value)"]
    lines += _settings(settings, notes, "")
    lines += ["", "-m sweeps over values separated by commas, each job into a folder of its own."]
    return "\n".join(lines) + "\n"


def card(about: Mapping[str, Any]) -> str:
    """What is known about a data set: where it comes from, and how large it is.

    >>> print(card({"title": "Cats", "source": "here", "known": {"samples": 2, "pairs": 3}}))
    Cats
      source      here
      size        2 samples, 3 pairs
    """
    known = about.get("known", {})
    size = {key: known[key] for key in ("samples", "pairs") if key in known}
    rows = {key: about.get(key) for key in ("source", "licence", "citation", "layout")}
    return "\n".join([about["title"], *table(rows | {"size": size})])


def table(rows: Mapping[str, Any]) -> list[str]:
    """A line, or some, for each row that says anything.

    >>> table({"width": [512, 768], "categories": {"cats": 1, "dogs": 2}, "tasks": {}})
    ['  width       512 to 768', '  categories  1 cats, 2 dogs']
    """
    wrapper = textwrap.TextWrapper(
        98, subsequent_indent=" " * 14, break_long_words=False, break_on_hyphens=False
    )
    lines = []
    for key, value in rows.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{count} {name}" for name, count in value.items())
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = " to ".join(map(str, value))
        if value not in (None, ""):
            lines += wrapper.wrap(f"  {key:<12}{value}")
    return lines


def notes_of(group: str, texts: Iterable[str]) -> dict[tuple[str, str], str]:
    """The comments behind the settings of a group's files; the first file's count.

    >>> notes_of("method", ["B: 10   # drag operations per denoising step"])
    {('method', 'B'): 'drag operations per denoising step'}
    """
    found: dict[tuple[str, str], str] = {}
    for text in texts:
        for name, note in re.findall(r"^ *([A-Za-z]\w*):[^#\n]*# (.+)$", text, re.MULTILINE):
            found.setdefault((group, name), note.strip())
    return found


def _options(options: Sequence[str], chosen: str | None) -> str:
    return ", ".join(f"{option}*" if option == chosen else option for option in options)


def _settings(
    settings: Mapping[str, Any], notes: Mapping[tuple[str, str], str], parent: str
) -> list[str]:
    """A line per number, with its remark; what refers to another setting is left out."""
    lines = []
    for name, value in sorted(settings.items(), key=lambda item: isinstance(item[1], Mapping)):
        key = f"{parent}.{name}" if parent else name
        if name in WIRING or value == {}:
            continue
        if isinstance(value, Mapping):
            inner = _settings(value, notes, key)
            lines += inner if parent else ["", *inner] if inner else []
        elif not (parent and str(value).startswith("${")):
            note = notes.get((parent.partition(".")[0], name), "")
            lines += _line(f"  {key}={_plain(value)}", note)
    return lines


def _wrapped(line: str, indent: int, width: int = 98) -> list[str]:
    wrapper = textwrap.TextWrapper(
        width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    return wrapper.wrap(line)


def _line(setting: str, note: str, indent: int = 36, width: int = 98) -> list[str]:
    if not note:
        return _wrapped(setting, 4)
    wrapped = [" " * indent + line for line in textwrap.wrap(note, width - indent)]
    if len(setting) >= indent:
        return [*_wrapped(setting, 4), *wrapped]
    return [setting.ljust(indent) + wrapped[0].lstrip(), *wrapped[1:]]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_plain, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
