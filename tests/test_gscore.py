"""GScore over real HTTP, against a server on loopback that answers as it is told."""

from __future__ import annotations

import base64
import contextlib
import http.server
import importlib.util
import io
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from gooddrag.composition import composer, instantiate
from gooddrag.metrics import Gemini, GScore, Judge, OpenAICompatible, collection, score
from gooddrag.metrics.answers import AnswerFile
from gooddrag.metrics.endpoints import Picture, Reply, UnansweredError
from gooddrag.metrics.gscore import png, read_scores
from tests import tiny

PROMPT = "Rate {labels} as {form}."
Said = tuple[int, dict[str, str], bytes]


def completion(text: str, prompt_tokens: int = 100, completion_tokens: int = 10) -> Said:
    """OpenAI's form of an answer."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    body = {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}
    return 200, {}, json.dumps(body).encode()


class Server:
    """Keeps what it is asked; answers each question by a function of its number and body."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.answer: Callable[[int, dict[str, Any]], Said] = lambda *_: completion('{"A": 7}')
        lock, outer = threading.Lock(), self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.asked.append((self.path, dict(self.headers), body))
                    number = len(outer.asked) - 1
                status, headers, content = outer.answer(number, body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):  # who asked may have given up
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    thread.join()


def endpoint(server: Server, **settings: Any) -> OpenAICompatible:
    defaults: dict[str, Any] = {"url": server.url, "model": "judge", "key_variable": None}
    defaults |= {"timeout": 20.0, "options": {"temperature": 0.4}, "prices": [2.0, 8.0]}
    return OpenAICompatible(**defaults | settings)


def judge(asked: Any, answers: Path, **settings: Any) -> Judge:
    defaults: dict[str, Any] = {"prompt": PROMPT, "repeats": 1, "attempts": 3, "wait": 0.001}
    defaults |= {"parallel": 1, "seed": 0, "retry_failed": False}
    return Judge(endpoint=asked, answers=answers, **defaults | settings)


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    return tmp_path / "below" / "answers.jsonl"


@pytest.fixture
def picture() -> Tensor:
    return tiny.make_sample(size=(16, 24)).image


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def edits_of(body: dict[str, Any]) -> dict[str, Tensor]:
    """The pictures of a request by their labels, as the server decodes them."""
    parts, found = body["messages"][0]["content"], {}
    for label, image in zip(parts[1::2], parts[2::2], strict=True):
        data = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
        pixels = torch.frombuffer(
            bytearray(Image.open(io.BytesIO(data)).convert("RGB").tobytes()), dtype=torch.uint8
        )
        found[label["text"].removesuffix(":")] = pixels
    return found


class TestOneQuestion:
    def test_request_and_score(self, server: Server, answers: Path, picture: Tensor) -> None:
        asked = judge(endpoint(server, options={"temperature": 0.4, "seed": 3}), answers)
        edited = 1 - picture
        assert asked(picture, {"ours": edited}, "cat") == [{"ours": 7.0}]
        ((path, headers, body),) = server.asked
        assert path == "/v1/chat/completions"
        assert headers["Content-Type"] == "application/json"
        assert "Authorization" not in headers
        assert body["model"] == "judge"
        assert (body["temperature"], body["seed"]) == (0.4, 3)
        (message,) = body["messages"]
        assert message["content"][0]["text"] == 'Rate A as {"A": score}.'
        sent = edits_of(body)
        assert list(sent) == ["Original", "A"]
        for label, image in (("Original", picture), ("A", edited)):
            pixels = (image * 255).round().byte().permute(1, 2, 0).flatten()
            assert torch.equal(sent[label], pixels)

    def test_what_is_kept(self, server: Server, answers: Path, picture: Tensor) -> None:
        server.answer = lambda *_: completion('Sure: {"A": 7.5} (nice)', 1000, 500)
        asked = judge(endpoint(server), answers)
        asked(picture, {"ours": picture}, "cat")
        (line,) = lines(answers)
        assert line["text"] == 'Sure: {"A": 7.5} (nice)'
        assert line["scores"] == {"A": 7.5}
        assert (line["sample"], line["repeat"], line["order"]) == ("cat", 0, ["ours"])
        assert (line["model"], line["error"]) == ("judge", None)
        assert line["seconds"] > 0
        costs = asked.costs
        assert (costs.answers, costs.input_tokens, costs.output_tokens) == (1, 1000, 500)
        assert costs.money == pytest.approx((1000 * 2 + 500 * 8) / 1e6)

    def test_key(
        self, server: Server, answers: Path, picture: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("JUDGES_KEY", " secret\n")
        asked = endpoint(server, key_variable="JUDGES_KEY")
        judge(asked, answers)(picture, {"ours": picture}, "cat")
        assert server.asked[0][1]["Authorization"] == "Bearer secret"
        assert "secret" not in repr(asked) + answers.read_text()
        monkeypatch.setenv("JUDGES_KEY", "")
        with pytest.raises(ValueError, match=r"JUDGES_KEY.* is empty"):
            endpoint(server, key_variable="JUDGES_KEY")

    def test_without_usage_and_prices(self, server: Server, answers: Path, picture: Tensor) -> None:
        body = {"choices": [{"message": {"content": '{"A": 1}'}}]}
        server.answer = lambda *_: (200, {}, json.dumps(body).encode())
        asked = judge(endpoint(server, prices=None), answers)
        assert asked(picture, {"ours": picture}, "cat") == [{"ours": 1.0}]
        assert (asked.costs.input_tokens, asked.costs.money) == (0, None)

    def test_address(self, server: Server) -> None:
        with pytest.raises(ValueError, match="begins with http"):
            endpoint(server, url="file:///etc/passwd")


class TestRepeats:
    METHODS = ("drag", "identity", "paste")

    def edits(self, picture: Tensor) -> dict[str, Tensor]:
        return {name: picture * (k + 1) / 4 for k, name in enumerate(self.METHODS)}

    @staticmethod
    def by_brightness(number: int, body: dict[str, Any]) -> Said:
        """The brighter a picture, the better: scores must find back to their methods."""
        mean = {label: float(p.float().mean()) for label, p in edits_of(body).items()}
        ranked = sorted((label for label in mean if label != "Original"), key=lambda k: mean[k])
        return completion(json.dumps({label: k + 3 for k, label in enumerate(ranked)}))

    def test_orders_are_shuffled_and_undone(
        self, server: Server, answers: Path, picture: Tensor
    ) -> None:
        server.answer = self.by_brightness
        asked = judge(endpoint(server), answers, repeats=12, parallel=4)
        found = asked(picture, self.edits(picture), "cat")
        assert found == [{"drag": 3.0, "identity": 4.0, "paste": 5.0}] * 12
        orders = Counter(tuple(line["order"]) for line in lines(answers))
        assert len(orders) > 3
        assert all(sorted(order) == sorted(self.METHODS) for order in orders)

    def test_the_seed_decides(self, server: Server, tmp_path: Path, picture: Tensor) -> None:
        server.answer = self.by_brightness
        orders = []
        for name, seed, edits in (
            ("a", 0, self.edits(picture)),
            ("b", 0, dict(reversed(self.edits(picture).items()))),
            ("c", 1, self.edits(picture)),
        ):
            asked = judge(endpoint(server), tmp_path / f"{name}.jsonl", repeats=6, seed=seed)
            asked(picture, edits, "cat")
            orders.append([line["order"] for line in lines(tmp_path / f"{name}.jsonl")])
        assert orders[0] == orders[1] != orders[2]

    def test_metric(self, server: Server, answers: Path, picture: Tensor) -> None:
        server.answer = self.by_brightness
        metric = GScore(judge=judge(endpoint(server), answers, repeats=2), methods=self.METHODS)
        row = metric(source=picture, edited=self.edits(picture), name="cat")
        expected = {"gscore_drag": 3, "gscore_identity": 4, "gscore_paste": 5, "gscore_failed": 0}
        assert {name: float(number) for name, number in row.items()} == expected
        with pytest.raises(ValueError, match=r"rates edits of drag, identity, paste; found drag"):
            metric.update(picture, {"drag": picture}, "cat")
        with pytest.raises(ValueError, match="one size"):
            metric.update(picture, self.edits(picture[:, 1:]), "cat")

    def test_one_edit_alone(self, server: Server, answers: Path) -> None:
        replies = iter((4, 8, 9, 9))
        server.answer = lambda *_: completion(json.dumps({"A": next(replies)}))
        metrics = collection(
            {"gscore": GScore(judge=judge(endpoint(server), answers, repeats=2), methods=None)}
        )
        rows = [score(metrics, s, 1 - s.image) for s in (tiny.make_sample(1), tiny.make_sample(2))]
        assert rows == [
            {"gscore": 6, "gscore_failed": 0},
            {"gscore": 9, "gscore_failed": 0},
        ]
        assert float(metrics.compute()["gscore"]) == 7.5


class TestBadAnswers:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            "seven",
            "[7]",
            '{"A": 11}',
            '{"A": 0}',
            '{"A": "7"}',
            '{"A": true}',
            '{"A": NaN}',
            '{"A": [7]}',
            '{"B": 7}',
            '{"A": 7, "B": 7}',
            '{"A": 7',
            "{" * 100_000,
        ],
    )
    def test_are_told_apart(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"answer|score"):
            read_scores(text, ["A"])

    def test_are_asked_again(self, server: Server, answers: Path, picture: Tensor) -> None:
        said = ["no idea", '{"A": 99}', '{"A": 6}']
        server.answer = lambda number, _: completion(said[number])
        asked = judge(endpoint(server), answers)
        assert asked(picture, {"ours": picture}, "cat") == [{"ours": 6.0}]
        assert [line["text"] for line in lines(answers)] == said
        assert [line["scores"] for line in lines(answers)] == [None, None, {"A": 6.0}]
        assert asked.costs.answers == 3  # what was of no use has been paid for too

    def test_fail_after_all_attempts(self, server: Server, answers: Path, picture: Tensor) -> None:
        server.answer = lambda *_: completion("no idea")
        metric = GScore(judge=judge(endpoint(server), answers, attempts=2, repeats=3), methods=None)
        row = metric(source=picture, edited=picture, name="cat")
        assert torch.isnan(row["gscore"])
        assert float(row["gscore_failed"]) == 1
        assert len(server.asked) == 6
        # they stay failed, unless it is wanted otherwise
        assert judge(endpoint(server), answers, attempts=2)(picture, {"edit": picture}, "cat") == [
            None
        ]
        assert len(server.asked) == 6
        server.answer = lambda *_: completion('{"A": 2}')
        again = judge(endpoint(server), answers, attempts=2, retry_failed=True)
        assert again(picture, {"edit": picture}, "cat") == [{"edit": 2.0}]
        assert len(server.asked) == 7

    def test_a_share_fails(self, server: Server, answers: Path, picture: Tensor) -> None:
        server.answer = lambda number, _: completion('{"A": 8}' if number % 2 else "hm")
        asked = judge(endpoint(server), answers, attempts=1, repeats=4)
        row = GScore(judge=asked, methods=None)(source=picture, edited=picture, name="cat")
        assert float(row["gscore"]) == 8
        assert float(row["gscore_failed"]) == 0.5


class TestBusyAndBroken:
    @pytest.mark.parametrize("status", [408, 429, 500, 503])
    def test_are_asked_again(
        self, server: Server, answers: Path, picture: Tensor, status: int
    ) -> None:
        good = completion('{"A": 5}')
        server.answer = lambda number, _: good if number == 2 else (status, {}, b"too  busy\n")
        asked = judge(endpoint(server), answers)
        assert asked(picture, {"ours": picture}, "cat") == [{"ours": 5.0}]
        first = lines(answers)[0]
        assert (first["text"], first["scores"], first["input_tokens"]) == (None, None, 0)
        assert first["error"].endswith(f"answered {status}: too busy")

    def test_waits(
        self, server: Server, answers: Path, picture: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slept: list[float] = []
        monkeypatch.setattr("gooddrag.metrics.gscore.time.sleep", slept.append)
        headers = [{}, {"Retry-After": "7"}, {"Retry-After": "9999"}, {"Retry-After": "soon"}]
        server.answer = lambda number, _: (
            (429, headers[number % 5], b"") if number < 4 else (completion('{"A": 5}'))
        )
        asked = judge(endpoint(server), answers, attempts=5, wait=2.0)
        assert asked(picture, {"ours": picture}, "cat") == [{"ours": 5.0}]
        assert slept == [2.0, 7.0, 60.0, 16.0]

    @pytest.mark.parametrize("status", [400, 401, 404])
    def test_a_refusal_ends_it(
        self, server: Server, answers: Path, picture: Tensor, status: int
    ) -> None:
        server.answer = lambda *_: (status, {}, b'{"error": "no such model"}')
        with pytest.raises(ValueError, match=f"answered {status}.*no such model.*check") as caught:
            judge(endpoint(server), answers, repeats=3)(picture, {"ours": picture}, "cat")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "content", [b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": 3}]}']
    )
    def test_what_is_no_completion(
        self, server: Server, answers: Path, picture: Tensor, content: bytes
    ) -> None:
        server.answer = lambda *_: (200, {}, content)
        asked = judge(endpoint(server), answers, attempts=2)
        assert asked(picture, {"ours": picture}, "cat") == [None]
        assert all("sent" in line["error"] for line in lines(answers))

    def test_a_timeout(self, server: Server, answers: Path, picture: Tensor) -> None:
        done = threading.Event()

        def slow(number: int, body: dict[str, Any]) -> Said:
            if number == 0:
                done.wait(10)
            return completion('{"A": 5}')

        server.answer = slow
        asked = judge(endpoint(server, timeout=0.3), answers)
        assert asked(picture, {"ours": picture}, "cat") == [{"ours": 5.0}]
        done.set()
        assert "timed out" in lines(answers)[0]["error"]

    def test_nobody_there(self, server: Server, answers: Path, picture: Tensor) -> None:
        """Failures without an answer are asked again by the next run."""
        gone = endpoint(server, url="http://127.0.0.1:9/v1")
        assert judge(gone, answers)(picture, {"ours": picture}, "cat") == [None]
        assert len(lines(answers)) == 3
        assert "does not answer" in lines(answers)[0]["error"]
        found = judge(endpoint(server), answers)(picture, {"ours": picture}, "cat")
        assert found == [{"ours": 7.0}]  # another address, the same model


class TestResume:
    def test_answers_on_disk_are_not_asked_again(
        self, server: Server, answers: Path, picture: Tensor
    ) -> None:
        asked = judge(endpoint(server), answers, repeats=3)
        first = asked(picture, {"ours": picture}, "cat")
        assert len(server.asked) == 3
        server.answer = lambda *_: completion('{"A": 1}')
        assert (
            judge(endpoint(server), answers, repeats=3)(picture, {"ours": picture}, "cat") == first
        )
        assert len(server.asked) == 3
        more = judge(endpoint(server), answers, repeats=5)(picture, {"ours": picture}, "cat")
        assert more == [*first, {"ours": 1.0}, {"ours": 1.0}]
        assert len(server.asked) == 5
        assert judge(endpoint(server), answers).costs.answers == 5

    @pytest.mark.parametrize(
        "change",
        [
            {"model": "other"},
            {"options": {"temperature": 0.0}},
            {"prompt": "Judge {labels}: {form}"},
            {"edit": True},
        ],
    )
    def test_other_questions_are(
        self, server: Server, answers: Path, picture: Tensor, change: dict[str, Any]
    ) -> None:
        judge(endpoint(server), answers)(picture, {"ours": picture}, "cat")
        edited = picture.flip(1) if change.pop("edit", False) else picture
        prompt = {"prompt": change.pop("prompt")} if "prompt" in change else {}
        judge(endpoint(server, **change), answers, **prompt)(picture, {"ours": edited}, "cat")
        assert len(server.asked) == 2

    def test_another_name_keeps_its_score(
        self, server: Server, answers: Path, picture: Tensor
    ) -> None:
        judge(endpoint(server), answers)(picture, {"ours": picture}, "cat")
        found = judge(endpoint(server), answers)(picture, {"theirs": picture}, "cat")
        assert found == [{"theirs": 7.0}]
        assert len(server.asked) == 1

    def test_killed_while_writing(self, server: Server, answers: Path, picture: Tensor) -> None:
        judge(endpoint(server), answers, repeats=2)(picture, {"ours": picture}, "cat")
        content = answers.read_bytes()
        answers.write_bytes(content[:-40])  # the second line is torn
        again = judge(endpoint(server), answers, repeats=2)
        assert again(picture, {"ours": picture}, "cat") == [{"ours": 7.0}] * 2
        assert len(server.asked) == 3
        assert len(AnswerFile(answers).all()) == 2
        assert answers.read_bytes().count(b"\n") == 3

    def test_many_threads_write_whole_lines(
        self, server: Server, answers: Path, picture: Tensor
    ) -> None:
        server.answer = lambda *_: completion('{"A": 7}' + "." * 20_000)
        judge(endpoint(server), answers, repeats=24, parallel=8)(picture, {"o": picture}, "cat")
        assert len(lines(answers)) == 24
        assert len({line["key"] for line in lines(answers)}) == 24


class TestSettings:
    @pytest.mark.parametrize("bad", [{"repeats": 0}, {"attempts": 0}, {"wait": -1.0}])
    def test_out_of_range(self, server: Server, answers: Path, bad: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="must be positive"):
            judge(endpoint(server), answers, **bad)

    @pytest.mark.parametrize("prompt", ["{label}", "{", "{0}"])
    def test_prompt(self, server: Server, answers: Path, prompt: str) -> None:
        with pytest.raises(ValueError, match="no other braces"):
            judge(endpoint(server), answers, prompt=prompt)

    def test_how_many_edits(self, server: Server, answers: Path, picture: Tensor) -> None:
        asked = judge(endpoint(server), answers)
        for count in (0, 27):
            with pytest.raises(ValueError, match=f"between 1 and 26.*found {count}"):
                asked(picture, {str(k): picture for k in range(count)}, "cat")

    def test_conf(self, server: Server, tmp_path: Path, picture: Tensor) -> None:
        words = ["+metrics=gscore", f"cache={tmp_path}", "metrics.gscore.judge.repeats=2"]
        node = "metrics.gscore.judge.endpoint"
        words += [f"endpoint@{node}=local", f"{node}.url={server.url}", f"{node}.model=m"]
        with composer() as compose:
            found = instantiate(compose("base", words).metrics)
        row = found["gscore"](source=picture, edited=picture, name="cat")
        assert float(row["gscore"]) == 7
        _, _, body = server.asked[0]
        assert body["response_format"] == {"type": "json_object"}
        text = body["messages"][0]["content"][0]["text"]
        assert text.endswith('{"A": score}\n')
        assert "{" not in text.removesuffix('{"A": score}\n')
        assert len(lines(tmp_path / "gscore" / "answers.jsonl")) == 2
        assert found["gscore"].judge.costs.money == 0

    def test_png(self, picture: Tensor) -> None:
        found = Image.open(io.BytesIO(png(picture * 3 - 1)))
        assert found.size == (24, 16)
        pixels = torch.frombuffer(bytearray(found.tobytes()), dtype=torch.uint8)
        expected = ((picture * 3 - 1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
        assert torch.equal(pixels, expected.flatten())


class Models:
    """Stands in for Google's client."""

    def __init__(self, reply: Any) -> None:
        self.models, self.reply, self.asked = self, reply, []

    def generate_content(self, **asked: Any) -> Any:
        self.asked.append(asked)
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply


def gemini(server: Server | None = None) -> Gemini:
    return Gemini(
        model="gemini-x",
        key_variable="GEMINI_TEST_KEY",
        timeout=20.0,
        options={"temperature": 0.4, "response_mime_type": "application/json"},
        prices=None,
        url=server and server.url.removesuffix("/v1"),
    )


PICTURES: Sequence[Picture] = (("Original", b"one"), ("A", b"two"))
has_gemini = pytest.mark.skipif(
    importlib.util.find_spec("google") is None or importlib.util.find_spec("google.genai") is None,
    reason="google-genai is not installed: pip install 'gooddrag[gemini]'",
)


class TestGemini:
    def test_without_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("google", "google.genai"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ValueError, match=r"pip install 'gooddrag\[gemini\]'") as caught:
            gemini()
        assert "\n" not in str(caught.value)

    def made(self, monkeypatch: pytest.MonkeyPatch, reply: Any) -> tuple[Gemini, Models]:
        client = Models(reply)
        monkeypatch.setattr(Gemini, "_client", client)
        return gemini(), client

    def test_request_and_reply(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Usage:
            prompt_token_count, candidates_token_count, thoughts_token_count = 9, 4, None

        class Response:
            text, usage_metadata = '{"A": 7}', Usage

        made, client = self.made(monkeypatch, Response)
        assert made("Rate", PICTURES) == Reply('{"A": 7}', 9, 4)
        (asked,) = client.asked
        assert asked["model"] == "gemini-x"
        assert asked["config"] == {"temperature": 0.4, "response_mime_type": "application/json"}
        parts = asked["contents"][0]["parts"]
        assert [part.get("text") for part in parts] == ["Rate", "Original:", None, "A:", None]
        assert parts[4]["inline_data"] == {"mime_type": "image/png", "data": b"two"}

    @pytest.mark.parametrize(("code", "error"), [(429, UnansweredError), (400, ValueError)])
    def test_errors_with_a_code(
        self, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception]
    ) -> None:
        class APIError(Exception):
            pass

        wrong = APIError("said")
        wrong.code = code  # type: ignore[attr-defined]
        with pytest.raises(error, match=f"gemini-x answered {code}: said"):
            self.made(monkeypatch, wrong)[0]("Rate", PICTURES)

    def test_other_errors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class ConnectError(Exception):
            pass

        with pytest.raises(UnansweredError, match="does not answer"):
            self.made(monkeypatch, ConnectError("lost"))[0]("Rate", PICTURES)
        with pytest.raises(TypeError):
            self.made(monkeypatch, TypeError("no such option"))[0]("Rate", PICTURES)

    @has_gemini
    def test_over_http(
        self, server: Server, answers: Path, picture: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GEMINI_TEST_KEY", "secret")
        usage = {"promptTokenCount": 11, "candidatesTokenCount": 5, "thoughtsTokenCount": 3}
        candidate = {"content": {"role": "model", "parts": [{"text": '{"A": 7}'}]}}
        body = json.dumps({"candidates": [candidate], "usageMetadata": usage}).encode()
        busy = b'{"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}'
        headers = {"Content-Type": "application/json"}
        server.answer = lambda number, _: (200, headers, body) if number else (503, headers, busy)
        asked = judge(gemini(server), answers)
        assert asked(picture, {"ours": picture}, "cat") == [{"ours": 7.0}]
        path, sent, question = server.asked[-1]
        assert path.endswith("models/gemini-x:generateContent")
        assert {name.lower(): value for name, value in sent.items()}["x-goog-api-key"] == "secret"
        assert question["generationConfig"]["temperature"] == 0.4
        assert (asked.costs.input_tokens, asked.costs.output_tokens) == (11, 8)
        server.answer = lambda *_: (403, headers, b'{"error": {"code": 403, "message": "key"}}')
        with pytest.raises(ValueError, match="answered 403"):
            asked(picture, {"ours": 1 - picture}, "cat")
