"""GScore: a multimodal model rates edits from 1 to 10 beside the original picture.

The paper's rating (naturalness, artefacts, kept integrity; ten repeats) with what the official
script lacks: methods stand in another order each time, scores are checked, answers are kept and
not asked for again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from string import ascii_uppercase

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from gooddrag import seeding
from gooddrag.metrics.answers import Answer, AnswerFile
from gooddrag.metrics.base import SampleMean, check_sizes
from gooddrag.metrics.endpoints import Endpoint, Picture, Reply, UnansweredError

LOWEST, HIGHEST = 1, 10
_LONGEST_WAIT = 60.0  # seconds, whatever an endpoint or doubling says


@dataclass(frozen=True)
class Question:
    """One picture's edits in one order.

    Attributes:
        sample: the sample's name.
        repeat: how often it was asked before.
        order: the methods as they are labelled A, B, ...
        prompt: the text.
        pictures: original and edits with their labels.
        key: tells the question from all others, by what the endpoint sees, and the repeat.
    """

    sample: str
    repeat: int
    order: tuple[str, ...]
    prompt: str
    pictures: tuple[Picture, ...]
    key: str

    @property
    def labels(self) -> str:
        """A, B, ... for the methods."""
        return ascii_uppercase[: len(self.order)]

    def by_method(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Scores by label as scores by method."""
        return {m: scores[label] for m, label in zip(self.order, self.labels, strict=True)}


@dataclass(frozen=True)
class Costs:
    """What a model's answers on disk have cost; money is None without prices."""

    answers: int
    input_tokens: int
    output_tokens: int
    money: float | None


def read_scores(text: str, labels: Sequence[str]) -> dict[str, float]:
    """The score of each label from a model's answer, which may have words round the JSON.

    Raises:
        ValueError: no JSON, other labels, or a score that is no number from 1 to 10.

    >>> read_scores('Here: {"A": 7, "B": 3.5}', ["A", "B"])
    {'A': 7.0, 'B': 3.5}
    """
    try:
        found = json.loads(text[text.index("{") : text.rindex("}") + 1])
    except (ValueError, RecursionError):
        raise ValueError(f"the answer holds no JSON object: {text[:200]!r}") from None
    if not isinstance(found, dict) or sorted(found) != sorted(labels):
        raise ValueError(f"the answer should score {', '.join(labels)}, found {str(found)[:200]}")
    for label, score in found.items():
        number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if not number or not LOWEST <= score <= HIGHEST:
            raise ValueError(f"{label} should have a score from 1 to 10, found {str(score)[:50]!r}")
    return {label: float(found[label]) for label in labels}


class Judge:
    """Asks an endpoint to rate edits.

    Args:
        endpoint: the model.
        prompt: the question, with {labels} and {form} for the edits' labels and the answer's form.
        repeats: how often each picture is asked about, in another order each time.
        attempts: how often a question is put until a valid answer comes; then it has failed.
        wait: seconds before a busy endpoint is asked again, doubled each time.
        parallel: questions at a time.
        seed: of the orders.
        answers: the file of answers. What is answered there is not asked again.
        retry_failed: ask again where all attempts had brought answers that were not valid.

    Raises:
        ValueError: a setting out of range, or other placeholders in the prompt.
    """

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        prompt: str,
        repeats: int,
        attempts: int,
        wait: float,
        parallel: int,
        seed: int,
        answers: str | os.PathLike[str],
        retry_failed: bool,
    ) -> None:
        if min(repeats, attempts, parallel) < 1 or wait < 0:
            raise ValueError(
                "repeats, attempts and parallel must be positive and wait not negative, found "
                f"{repeats}, {attempts}, {parallel} and {wait}"
            )
        self.endpoint, self.prompt, self.repeats = endpoint, prompt, repeats
        self.attempts, self.wait, self.parallel = attempts, wait, parallel
        self.seed, self.retry_failed = seed, retry_failed
        self.answers = AnswerFile(answers)
        _fill(prompt, ["A"])

    def __call__(
        self,
        source: Float[Tensor, "3 h w"],
        edits: Mapping[str, Float[Tensor, "3 h w"]],
        name: str,
    ) -> list[Mapping[str, float] | None]:
        """The methods' scores in each repeat; None where no valid answer came.

        Args:
            source: RGB in [0, 1].
            edits: of each method, RGB in [0, 1].
            name: the sample's.

        Raises:
            ValueError: no edits, too many, or an endpoint that refuses.
        """
        questions = self._questions(source, edits, name)
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(self._ask, questions))

    @property
    def model(self) -> str:
        """Who is asked."""
        return str(self.endpoint.identity["model"])

    @property
    def costs(self) -> Costs:
        """What the model's answers on disk have cost, those of earlier runs included."""
        answers = [answer for answer in self.answers.all() if answer.model == self.model]
        prices, money = self.endpoint.prices, None
        read = sum(answer.input_tokens for answer in answers)
        written = sum(answer.output_tokens for answer in answers)
        if prices is not None:
            money = (read * prices[0] + written * prices[1]) / 1e6
        return Costs(len(answers), read, written, money)

    def _questions(self, source: Tensor, edits: Mapping[str, Tensor], name: str) -> list[Question]:
        if not 1 <= len(edits) <= len(ascii_uppercase):
            raise ValueError(f"between 1 and 26 edits can be rated together, found {len(edits)}")
        methods, labels = sorted(edits), ascii_uppercase[: len(edits)]
        original, files = png(source), {method: png(edits[method]) for method in methods}
        prompt, asked = _fill(self.prompt, labels), []
        for repeat in range(self.repeats):
            shuffle = seeding.generator(self.seed, "gscore", name, str(repeat))
            places = torch.randperm(len(methods), generator=shuffle).tolist()
            order = tuple(methods[place] for place in places)
            edited = [(label, files[m]) for label, m in zip(labels, order, strict=True)]
            pictures = (("Original", original), *edited)
            seen = [prompt, repeat, dict(self.endpoint.identity), _digests(pictures)]
            key = hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()
            asked.append(Question(name, repeat, order, prompt, pictures, key))
        return asked

    def _ask(self, question: Question) -> Mapping[str, float] | None:
        """The scores that an earlier run left or that the endpoint gives now."""
        invalid = 0
        for answer in self.answers.of(question.key):
            if answer.scores is not None:
                return question.by_method(answer.scores)
            invalid += answer.text is not None
        tries = self.attempts if self.retry_failed else max(0, self.attempts - invalid)
        for number in range(tries):
            answer, wait = self._try(question)
            if answer.scores is not None:
                return question.by_method(answer.scores)
            if answer.text is None and number + 1 < tries:
                time.sleep(min(self.wait * 2**number if wait is None else wait, _LONGEST_WAIT))
        return None

    def _try(self, question: Question) -> tuple[Answer, float | None]:
        """One attempt, kept in the file; and the seconds that a busy endpoint asks for."""
        start, wait = time.monotonic(), None
        reply, scores, error = Reply(None, 0, 0), None, None
        try:
            reply = self.endpoint(question.prompt, question.pictures)
        except UnansweredError as busy:
            error, wait = str(busy), busy.wait
        try:
            if reply.text is not None:
                scores = read_scores(reply.text, question.labels)
        except ValueError as wrong:
            error = str(wrong)
        answer = Answer(
            key=question.key,
            sample=question.sample,
            repeat=question.repeat,
            order=question.order,
            model=self.model,
            text=reply.text,
            scores=scores,
            error=error,
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            seconds=round(time.monotonic() - start, 3),
        )
        self.answers.add(answer)
        return answer, wait


def _fill(prompt: str, labels: Sequence[str]) -> str:
    """The prompt with the edits' labels and the form of the answer."""
    form = "{" + ", ".join(f'"{label}": score' for label in labels) + "}"
    try:
        return prompt.format(labels=", ".join(labels), form=form)
    except (LookupError, ValueError):
        raise ValueError(
            "the prompt may hold {labels} and {form} and no other braces (write {{ for a brace)"
        ) from None


def _digests(pictures: Sequence[Picture]) -> list[str]:
    return [hashlib.sha256(file).hexdigest() for _, file in pictures]


def png(image: Float[Tensor, "3 h w"]) -> bytes:
    """A picture as a PNG file, with 8 bits."""
    values = (image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(values.cpu().numpy()).save(buffer, "PNG")
    return buffer.getvalue()


class GScore(SampleMean):
    """Mean GScore over pictures, and the share of questions that failed, `gscore_failed`.

    Args:
        judge: rates the edits.
        methods: rated side by side, giving `gscore_METHOD` each; None rates one edit alone, giving
            `gscore`.
    """

    higher_is_better = True

    def __init__(self, *, judge: Judge, methods: Sequence[str] | None) -> None:
        names = ["gscore"] if methods is None else [f"gscore_{method}" for method in methods]
        super().__init__([*names, "gscore_failed"])
        self.judge = judge
        self.methods = ("edit",) if methods is None else tuple(methods)

    def update(self, source: Tensor, edited: Tensor | Mapping[str, Tensor], name: str) -> None:
        """Count one picture.

        Args:
            source: RGB in [0, 1].
            edited: the edit, or those of all methods by name, RGB in [0, 1].
            name: the sample's.

        Raises:
            ValueError: a method's edit is missing, or as of `Judge`.
        """
        edits = {"edit": edited} if isinstance(edited, Tensor) else dict(edited)
        if edits.keys() != set(self.methods):
            found = ", ".join(edits) or "none"
            raise ValueError(f"GScore rates edits of {', '.join(self.methods)}; found {found}")
        for edit in edits.values():
            check_sizes(source, edit)
        given = self.judge(source, edits, name)
        valid = [scores for scores in given if scores is not None]
        means = [
            sum(scores[method] for scores in valid) / len(valid) if valid else torch.nan
            for method in self.methods
        ]
        failed = 1 - len(valid) / len(given)
        self.add(dict(zip(self.names, [*means, failed], strict=True)))
