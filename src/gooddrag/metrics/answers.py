"""A model's answers on disk, so that none is paid for twice."""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """One try at a question, a line of the file of answers.

    Attributes:
        key, sample, repeat, order: of the question.
        model: who was asked.
        text: what it said; None if nothing came.
        scores: by label, A for the first of the order; None if the text held none that are valid.
        error: why there are none.
        input_tokens, output_tokens: as the endpoint counts.
        seconds: until it came.
    """

    key: str
    sample: str
    repeat: int
    order: Sequence[str]
    model: str
    text: str | None
    scores: Mapping[str, float] | None
    error: str | None
    input_tokens: int
    output_tokens: int
    seconds: float


class AnswerFile:
    """Answers as JSON lines, each appended in one write; a line that was torn is not read.

    Args:
        path: made when the first answer comes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self._lock = threading.Lock()
        self._answers: dict[str, list[Answer]] = defaultdict(list)
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        for answer in filter(None, map(_parse, lines)):
            self._answers[answer.key].append(answer)

    def of(self, key: str) -> list[Answer]:
        """The answers to one question, in order."""
        with self._lock:
            return list(self._answers[key])

    def all(self) -> list[Answer]:
        """All answers."""
        with self._lock:
            return [answer for answers in self._answers.values() for answer in answers]

    def add(self, answer: Answer) -> None:
        """Append an answer.

        Raises:
            OSError: it cannot be written.
        """
        line = json.dumps(asdict(answer), ensure_ascii=False, allow_nan=False) + "\n"
        with self._lock:
            _append(self.path, line.encode())
            self._answers[answer.key].append(answer)


def _parse(line: bytes) -> Answer | None:
    try:
        return Answer(**json.loads(line))
    except (ValueError, TypeError):
        return None


def _append(path: Path, line: bytes) -> None:
    """Add a line in one write, on a line of its own even if the one before was torn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = b"\n" * (file.read(1) != b"\n") + line
        if file.write(line) < len(line):
            raise OSError(f"{path}: no space for an answer")
        os.fsync(file.fileno())
