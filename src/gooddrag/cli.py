"""The command line: find the command, run it, and say in one line what a user can mend.

Torch and Hydra are imported where they are needed, so that help and typing errors come at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files

from gooddrag.commands import COMMANDS, INTERRUPTED
from gooddrag.composition import choices_of, explain
from gooddrag.jobs import Composing, check_job, run_jobs
from gooddrag.manual import HELP, notes_of, page

BAD_INPUT = 2
NOISY = ("httpx", "matplotlib")  # libraries of libraries that log what they do
# Hydra's; all else on a command line is key=value.
FLAGS = (
    *("-m", "--multirun", "-r", "--run", "-c", "--cfg", "-p", "--package", "-i", "--info"),
    *("--resolve", "-cd", "--config-dir", "-cp", "--config-path", "-cn", "--config-name"),
    *("--experimental-rerun", "-sc", "--shell-completion", "--hydra-help"),
)


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
    quiet_libraries()
    check_flags(command, arguments)
    root, task, _ = COMMANDS[command]
    arguments = flags_first(arguments)
    arguments = _with_folders(arguments) if command in ("report", "pack", "unpack") else arguments
    failures: list[int] = []
    here = os.getpid()

    def work(begin: Composing) -> None:
        cfg = begin()
        check_job(cfg, root)
        task(cfg)

    def job(begin: Composing) -> None:
        if os.getpid() != here:  # a launcher's process: errors travel back and are explained here
            return work(begin)
        with _explained() as statuses:
            work(begin)
        failures.extend(statuses)

    with _ended_as_by_ctrl_c(signal.SIGTERM):
        run_jobs(root, job, f"gooddrag {command}", arguments)
    return failures


def check_flags(command: str, arguments: Sequence[str]) -> None:
    """Refuse --key=value, which Hydra answers with its own usage.

    Raises:
        ValueError: a flag that there is not.
    """
    for word in arguments:
        flag = word.partition("=")[0]
        if flag.startswith("-") and flag not in FLAGS:
            meant = f"{flag.lstrip('-')}={word.partition('=')[2] or '...'}"
            raise ValueError(
                f"there is no option {flag}: settings stand without dashes, as in {meant} "
                f"(see gooddrag {command} --help)"
            )


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The words with Hydra's flags, and what belongs to them, before the settings.

    Hydra takes settings from one place of the line only, and says that it does not know the others.

    >>> flags_first(["seed=0", "-m", "method=paste,identity"])
    ['-m', 'seed=0', 'method=paste,identity']
    """

    def is_setting(word: str) -> bool:
        return not word.startswith("-") and ("=" in word or word.startswith("~"))

    return sorted(arguments, key=is_setting)


def help_of(command: str, overrides: Sequence[str]) -> str:
    """The command's groups and numbers, with the remarks that stand in conf/."""
    root, _, summary = COMMANDS[command]
    settings, groups, chosen = choices_of(root, overrides)
    conf = files("gooddrag.conf")
    notes = notes_of("", [(conf / f"{name}.yaml").read_text() for name in (root, "parts", "base")])
    for name, options in groups.items():
        order = sorted(options, key=lambda option: option != chosen.get(name))
        notes |= notes_of(name, [(conf / name / f"{o}.yaml").read_text() for o in order])
    return page(command, summary, groups, chosen, settings, notes)


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


@contextmanager
def _ended_as_by_ctrl_c(number: signal.Signals) -> Iterator[None]:
    """Let a signal, say of a cluster, end the work as Ctrl-C; a Lightning fit would just stop."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handler = signal.signal(number, interrupt)
    try:
        yield
    finally:
        signal.signal(number, handler)


def _with_folders(arguments: Sequence[str]) -> list[str]:
    """`gooddrag report DIR...` is gooddrag report results=[DIR,...]; pack and unpack too."""
    folders = [word for word in arguments if not ("=" in word or word.startswith("-"))]
    quoted = ",".join("'" + word.replace("'", "\\'") + "'" for word in folders)
    rest = [word for word in arguments if word not in folders]
    return [*rest, f"results=[{quoted}]"] if folders else rest


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return BAD_INPUT


def quiet_libraries() -> None:
    """Keep the libraries' notices out of the terminal, best before they are imported."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions come to `_explained`
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # it tells each attempt, twice
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "critical")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore")
    for name in (*("lightning", "lightning.pytorch", "transformers", "diffusers"), *NOISY):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in ("transformers", "diffusers"):
        if library := sys.modules.get(f"{name}.utils.logging"):
            library.disable_progress_bar()
