"""The output folder: whether it can be used, looked at before minutes of work."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from gooddrag.data.digest import sample_digest
from gooddrag.data.files import plain, read_json, write_bytes
from gooddrag.types import DragSample

# What an edit writes and may replace; every other file in the folder is someone else's.
OWNED = (
    "record.json",
    "edited.png",
    "before_after.png",
    "trajectory.json",
    "partial.png",
    "drag.mp4",
    "drag.gif",
)
EXISTING = ("refuse", "overwrite", "resume")
# Keys of the configuration that say where things go and who listens, not what is edited.
NOT_THE_EDIT = ("existing", "output", "cache", "callbacks", "logger", "hydra")
PROBE_BYTES = 1 << 20


@contextmanager
def reserved(
    folder: str | os.PathLike[str], existing: str = "refuse", owned: Sequence[str] = OWNED
) -> Iterator[Path]:
    """`prepare` a folder for the block; if that raises, folders that were made and are empty go.

    Raises:
        ValueError: see `prepare`.
    """
    folder = Path(folder)
    made = _missing(folder)
    try:
        prepare(folder, existing, owned)
        yield folder
    except BaseException:
        _remove_empty(made)
        raise


def prepare(
    folder: str | os.PathLike[str], existing: str = "refuse", owned: Sequence[str] = OWNED
) -> None:
    """Make sure that results can be written into a folder, and make it if need be.

    Nothing that is in the folder is changed.

    Args:
        folder: where the results of one sample go.
        existing: what to do if it holds a result: "refuse", or go on ("overwrite", "resume").
        owned: the names of files that are a result.

    Raises:
        ValueError: it holds a result, is a file, cannot be written, or the disk is full.
    """
    if existing not in EXISTING:
        raise ValueError(f"existing must be {', '.join(EXISTING)}; found {existing!r}")
    folder = Path(folder)
    try:
        held = [name for name in owned if (folder / name).exists()] if folder.is_dir() else []
        if held and existing == "refuse":
            raise ValueError(
                f"{folder} already holds a result ({held[0]}, {_status(folder)}): choose another "
                "output folder, or existing=overwrite to replace it, or existing=resume to keep "
                "it if it is complete"
            )
        _try_to_write(folder)
    except (FileExistsError, NotADirectoryError):
        file = next(path for path in (folder, *folder.parents) if path.exists())
        raise _unwritable(folder, f"{file} is a file, not a folder") from None
    except OSError as error:
        raise _unwritable(folder, error.strerror or str(error)) from None


def done_already(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    sample: DragSample,
    ignore: Sequence[str] = NOT_THE_EDIT,
) -> bool:
    """Whether the folder holds the finished result of the same edit, for `existing=resume`.

    Args:
        folder: where the results of the sample go.
        config: the resolved configuration.
        sample: what is to be edited.
        ignore: keys of the configuration, at its top, that do not change the result.
    """
    try:
        record = read_json(Path(folder) / "record.json")
    except ValueError:
        return False
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        return False
    ours, theirs = (
        _without_caches({key: value for key, value in settings.items() if key not in ignore})
        for settings in (_plain_config(config), record["config"])
    )
    same = ours == theirs and record.get("sample_sha256") == sample_digest(sample)
    return same and is_finished(folder)


def is_finished(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder holds the finished result of any edit."""
    try:
        record = read_json(Path(folder) / "record.json")
    except ValueError:
        return False
    done = isinstance(record, dict) and record.get("status") == "done"
    return done and (Path(folder) / "edited.png").exists()


def sample_folders(
    folder: str | os.PathLike[str], samples: Sequence[DragSample]
) -> tuple[Path, ...]:
    """Where the results of each sample go: one sample into the folder, several below it by name.

    Raises:
        ValueError: a name cannot be a folder's, or two samples share one.
    """
    if len(samples) == 1:
        return (Path(folder),)
    names = [sample.name for sample in samples]
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name:
            raise ValueError(f"the sample's name {name!r} cannot be a folder: rename the sample")
        if names.count(name) > 1:
            raise ValueError(f"two samples are called {name!r}: give them different names")
    return tuple(Path(folder) / name for name in names)


def remove_old(folder: Path) -> None:
    """Remove the files of an earlier edit, and nothing else."""
    for name in OWNED:
        (folder / name).unlink(missing_ok=True)


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    content = plain(config)
    return content if isinstance(content, dict) else {}


def _without_caches(settings: Any) -> Any:
    """Where a part keeps its files changes no result."""
    if not isinstance(settings, Mapping):
        return settings
    return {key: _without_caches(value) for key, value in settings.items() if key != "cache"}


def _status(folder: Path) -> str:
    try:
        record = read_json(folder / "record.json")
    except ValueError:
        return "without a readable record"
    status = record.get("status") if isinstance(record, dict) else None
    return f"status {status}" if status else "without a status"


def _unwritable(folder: Path, why: str) -> ValueError:
    return ValueError(f"cannot write into {folder}: {why}; choose another output folder")


def _try_to_write(folder: Path) -> None:
    """Write a file for real: rights, quotas and full disks show in no other way."""
    made = _missing(folder)
    probe = folder / ".gooddrag_probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(probe, bytes(PROBE_BYTES))
        probe.unlink()
    except OSError:
        _remove_empty(made)
        raise


def _missing(folder: Path) -> list[Path]:
    """The folder and those above it that do not exist, innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove_empty(folders: Sequence[Path]) -> None:
    for path in folders:
        with suppress(OSError):  # not empty, or never made
            path.rmdir()
