"""Multimodal models behind a network: a prompt and pictures go in, text comes out."""

from __future__ import annotations

import base64
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

Picture = tuple[str, bytes]
"""A label, say "A", and a PNG file."""


class UnansweredError(Exception):
    """No reply this time; asking again may help.

    Attributes:
        wait: seconds after which the endpoint wants to be asked again, None if it does not say.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Reply:
    """What an endpoint answered, and the tokens that it counts for question and answer.

    Without an answer the text is None.
    """

    text: str | None
    input_tokens: int
    output_tokens: int


@runtime_checkable
class Endpoint(Protocol):
    """A model that can be asked.

    Attributes:
        identity: what an answer depends on beside the question: model and options.
        prices: of a million tokens of input and of output, None where nobody gave them.
    """

    @property
    def identity(self) -> Mapping[str, Any]:
        """Model and options."""
        ...

    @property
    def prices(self) -> Sequence[float] | None:
        """Of a million tokens of input and of output."""
        ...

    def __call__(self, prompt: str, pictures: Sequence[Picture]) -> Reply:
        """Ask once.

        Raises:
            UnansweredError: no reply came, or the endpoint is busy.
            ValueError: it refuses, and would again.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class OpenAICompatible:
    """Any server with OpenAI's chat completions: OpenAI itself, vLLM, llama.cpp, Ollama and others.

    Attributes:
        url: up to the version, say http://localhost:8000/v1.
        model: its name there.
        key_variable: the environment variable that holds the key; None sends no key.
        timeout: seconds that a reply may take.
        options: join the request as they are, say temperature and response_format.
        prices: of a million tokens of input and of output.

    Raises:
        ValueError: an address that is not of the web, or an empty environment variable.
    """

    url: str
    model: str
    key_variable: str | None
    timeout: float
    options: Mapping[str, Any]
    prices: Sequence[float] | None
    _key: str | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"an endpoint's url begins with http:// or https://, found {self.url}")
        object.__setattr__(self, "_key", read_key(self.key_variable))

    @property
    def identity(self) -> Mapping[str, Any]:
        """Model and options; the same model may move to another address."""
        return {"model": self.model, **self.options}

    def __call__(self, prompt: str, pictures: Sequence[Picture]) -> Reply:
        """Ask once; errors as of `Endpoint`."""
        parts: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        for label, png in pictures:
            data = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            parts.append({"type": "text", "text": f"{label}:"})
            parts.append({"type": "image_url", "image_url": {"url": data}})
        messages = [{"role": "user", "content": parts}]
        reply = self._post({"model": self.model, "messages": messages, **self.options})
        try:
            text, usage = reply["choices"][0]["message"]["content"], reply.get("usage") or {}
            count = [int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion")]
        except (LookupError, TypeError, AttributeError, ValueError):
            raise UnansweredError(
                f"{self.url} sent no chat completion: {str(reply)[:200]}"
            ) from None
        return Reply(text if isinstance(text, str) else json.dumps(text), *count)

    def _post(self, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        address = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode(errors="replace")
            raise refusal(self.url, error.code, said, error.headers.get("Retry-After")) from None
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            raise UnansweredError(
                f"{self.url} does not answer ({error or type(error).__name__})"
            ) from None
        except ValueError:
            raise UnansweredError(f"{self.url} sent something that is not JSON") from None


@dataclass(frozen=True, kw_only=True)
class Gemini:
    """Gemini through Google's own client, the package google-genai.

    Attributes:
        model: its name.
        key_variable: the environment variable that holds the key; None leaves it to the client.
        timeout: seconds that a reply may take.
        options: of the generation, say temperature and response_mime_type.
        prices: of a million tokens of input and of output.
        url: another address than Google's.

    Raises:
        ValueError: the package is not installed, or an empty environment variable.
    """

    model: str
    key_variable: str | None
    timeout: float
    options: Mapping[str, Any]
    prices: Sequence[float] | None
    url: str | None = None

    def __post_init__(self) -> None:
        _ = self._client  # what is missing is said at once

    @property
    def identity(self) -> Mapping[str, Any]:
        """Model and options."""
        return {"model": self.model, **self.options}

    @cached_property
    def _client(self) -> Any:
        try:
            from google import genai
        except ImportError as error:
            raise ValueError(
                f"Gemini needs google-genai ({error}): pip install 'gooddrag[gemini]', or take an "
                "endpoint that is compatible with OpenAI's"
            ) from None
        http_options: dict[str, Any] = {"timeout": int(1000 * self.timeout)}
        if self.url:
            http_options["base_url"] = self.url
        return genai.Client(api_key=read_key(self.key_variable), http_options=http_options)

    def __call__(self, prompt: str, pictures: Sequence[Picture]) -> Reply:
        """Ask once; errors as of `Endpoint`."""
        parts: list[dict[str, Any]] = [{"text": prompt}]
        for label, png in pictures:
            parts.append({"text": f"{label}:"})
            parts.append({"inline_data": {"mime_type": "image/png", "data": png}})
        contents = [{"role": "user", "parts": parts}]
        try:
            response = self._client.models.generate_content(
                model=self.model, contents=contents, config=dict(self.options)
            )
        except (TypeError, ValueError):  # options that the client does not know
            raise
        except Exception as error:  # its transport's errors have no common parent
            code = getattr(error, "code", None)
            if isinstance(code, int):
                raise refusal(self.model, code, str(error), None) from None
            raise UnansweredError(f"{self.model} does not answer ({error})") from None
        used = response.usage_metadata
        counts = [
            sum(getattr(used, f"{kind}_token_count", None) or 0 for kind in kinds)
            for kinds in (("prompt",), ("candidates", "thoughts"))
        ]
        return Reply(response.text or "", *counts)


def read_key(variable: str | None) -> str | None:
    """A key from the environment; None if no variable is named.

    Raises:
        ValueError: the variable is empty or not there.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"the environment variable {variable}, which should hold the endpoint's key, is empty: "
            "set it, or key_variable=null for an endpoint without keys"
        )
    return key


def refusal(name: str, code: int, said: str, retry_after: str | None) -> Exception:
    """What an HTTP status means: too busy (408, 429, 5xx), or a request that cannot work."""
    message = f"{name} answered {code}: {' '.join(said.split())[:200]}"
    if code in (408, 429) or code >= 500:
        wait = retry_after if retry_after and retry_after.isdigit() else None
        return UnansweredError(message, None if wait is None else float(wait))
    return ValueError(f"{message} (check the model's name, the key and the options)")
