"""A vision-language model on an OpenAI-compatible server: image and question out, words or log-probabilities back.

An image that the server cannot answer for is unscored; a refused key, an unknown model and a server that is not
there are errors, because no image would ever be scored. Knows no question.
"""

import base64
import io
import math
import os
from collections.abc import Sequence
from typing import Any

import httpx2 as httpx
from PIL import Image
from pydantic import Field, field_validator

from realgen.core.errors import ConfigError, ModelError
from realgen.core.spec import Spec
from realgen.core.types import Score
from realgen.hub.servers import Trouble, ask_each, bearer, chat_address, open_client, post, text_of
from realgen.scorers._answers import Written, excerpt

_LOGPROBS = (-1000.0, 1e-3)  # between these: servers write -9999 for the logarithm of nothing, and round a little up

Choice = dict[str, Any]


class Server(Spec):
    """A server and how it is asked."""

    base_url: str
    """Address up to the version, such as http://localhost:8000/v1."""

    key_variable: str | None = Field(default=None, pattern="^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds the API key; null sends none."""

    thinking: bool = False
    """The model thinks before it writes, as gpt-5 does: max_tokens counts its thoughts, and it samples as it likes."""

    top_logprobs: int = Field(default=20, ge=4, le=1000)
    """How many of the likeliest tokens the server is asked for; providers and vLLM refuse more than 20 by default."""

    timeout: float = Field(default=120.0, gt=0)
    """Seconds to wait for one answer."""

    retries: int = Field(default=3, ge=0, le=10)
    """How often an image is sent again when the line breaks or the server is busy."""

    concurrent: int = Field(default=4, ge=1, le=256)
    """Images under way at once."""

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, base_url: str) -> str:
        return chat_address(base_url)


class Chat:
    """The model called `model` on a server. ConfigError where its key is not in the environment."""

    def __init__(self, server: Server, model: str, *, max_pixels: int | None = None) -> None:
        self._server = server
        self._model = model
        self._max_pixels = max_pixels
        _authorization(server)  # a missing key is said now, not after the images are drawn

    def weigh(
        self, images: Sequence[Image.Image], question: str, *, words: Sequence[str]
    ) -> list[dict[str, float] | Score]:
        """The log-probability of each of `words` as the answer's first token.

        One that is not among the tokens listed is given the least log-probability there, the most that it can have;
        where none of them is listed there is no answer.
        """
        settings = {"logprobs": True, "top_logprobs": self._server.top_logprobs}
        choices = self._ask_all(images, question, {**self._limit(1), **settings})
        return [choice if isinstance(choice, Score) else _weights(choice, words) for choice in choices]

    def write(self, images: Sequence[Image.Image], question: str, *, max_tokens: int) -> list[Written | Score]:
        """The answer to each image, at a temperature of 0 unless the model thinks."""
        choices = self._ask_all(images, question, self._limit(max_tokens))
        return [choice if isinstance(choice, Score) else _words(choice) for choice in choices]

    def _limit(self, max_tokens: int) -> dict[str, Any]:
        if self._server.thinking:
            return {"max_completion_tokens": max_tokens}
        return {"max_tokens": max_tokens, "temperature": 0}

    def _ask_all(self, images: Sequence[Image.Image], question: str, settings: dict[str, Any]) -> list[Choice | Score]:
        server = self._server

        def ask(image: Image.Image) -> Choice | Score:
            content = [
                {"type": "image_url", "image_url": {"url": _as_url(_within(image, self._max_pixels))}},
                {"type": "text", "text": question},
            ]
            messages = [{"role": "user", "content": content}]
            return self._ask(client, {"model": self._model, "messages": messages, **settings})

        with open_client(_authorization(server), timeout=server.timeout) as client:
            return ask_each(ask, images, concurrent=server.concurrent)

    def _ask(self, client: httpx.Client, body: dict[str, Any]) -> Choice | Score:
        server = self._server
        answer = post(client, f"{server.base_url}/chat/completions", body, retries=server.retries)
        if not isinstance(answer, Trouble):
            return self._read(answer)
        said = f"no answer from {server.base_url} in {server.retries + 1} attempts: {answer.message}"
        if answer.is_absent:
            raise ModelError(said, hint="start that server, or correct options.server.base_url")
        return Score(None, reason=said)

    def _read(self, response: httpx.Response) -> Choice | Score:
        """The first choice of an answer; ModelError where every other image would be refused too."""
        server, status = self._server, response.status_code
        if status in {401, 403}:
            name = server.key_variable
            hint = f"set {name} to a key for that server" if name else "name its key's variable: server.key_variable"
            raise ModelError(f"{server.base_url} refused the key", hint=hint)
        if status == 404:
            hint = "does base_url end with the server's version, and is that the model's name there?"
            raise ModelError(f"{server.base_url} knows no model {self._model!r}", hint=hint)
        if status != 200:
            return Score(None, reason=f"the server answered with status {status}: {excerpt(text_of(response)[:1000])}")
        try:
            choice: Choice = response.json()["choices"][0]
            choice["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            return Score(None, reason="the server answered with something else than a chat completion")
        return choice


def _authorization(server: Server) -> dict[str, str]:
    name = server.key_variable
    if name is None:
        return {}
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(f"the environment variable {name} holds no API key", hint=f"export {name}=...")
    return bearer(key, variable=name)


def _within(image: Image.Image, max_pixels: int | None) -> Image.Image:
    num_pixels = image.width * image.height
    if max_pixels is None or num_pixels <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / num_pixels)
    size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)


def _as_url(image: Image.Image) -> str:
    """PNG: a JPEG's own traces would be looked at too."""
    data = io.BytesIO()
    image.save(data, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


def _words(choice: Choice) -> Written:
    content = choice["message"]["content"]
    return Written(content if isinstance(content, str) else "", choice.get("finish_reason") != "length")


def _weights(choice: Choice, words: Sequence[str]) -> dict[str, float] | Score:
    try:
        first = choice["logprobs"]["content"][0]
        entries = [(str(entry["token"]), float(entry["logprob"])) for entry in (first, *first["top_logprobs"])]
    except (LookupError, TypeError, ValueError):
        return Score(None, reason="the server gave no log-probabilities: ask one that does, or ask for a verdict")
    low, high = _LOGPROBS
    listed = {token: value for token, value in reversed(entries) if low < value < high}
    if not listed.keys() & set(words):
        seen = " ".join(token for token, _ in entries)
        return Score(None, reason=f"none of {', '.join(words)} is among the likeliest first tokens: {excerpt(seen)}")
    least = min(listed.values())
    return {word: listed.get(word, least) for word in words}
