"""Asks any OpenAI-compatible chat server (vLLM, Ollama, a provider) to rewrite the prompt.

The key, where one is needed, comes from REALGEN_API_KEY or OPENAI_API_KEY and from nowhere else.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
from pydantic import Field, field_validator

from realgen.core.errors import ModelError
from realgen.core.protocols import PromptOptimizer
from realgen.core.spec import Machine, Spec
from realgen.core.types import Rewrite
from realgen.hub.servers import Trouble, ask_each, bearer, chat_address, open_client, post, text_of
from realgen.prompt_optimizers._answer import judge
from realgen.prompt_optimizers._question import messages, shipped_instruction


class Options(Spec):
    """The server, the model and how it samples."""

    base_url: str
    """Address up to the version, such as http://localhost:8000/v1."""

    model: str
    """The model's name on that server."""

    instruction: str | None = None
    """What the model is told to do; null takes the shipped instruction."""

    temperature: float = Field(default=0.7, ge=0)
    """Spread of the sampling; 0 takes the likeliest word."""

    top_p: float = Field(default=0.9, gt=0, le=1)
    """Sample among the likeliest words that together have this probability."""

    max_tokens: int = Field(default=160, ge=1)
    """Longest answer in the model's tokens."""

    max_words: int = Field(default=45, ge=3)
    """Longest text in words."""

    timeout: float = Field(default=60.0, gt=0)
    """Seconds to wait for one answer."""

    retries: int = Field(default=3, ge=0, le=10)
    """How often a request is sent again when the line breaks or the server is busy."""

    concurrent: int = Field(default=4, ge=1, le=64)
    """Requests under way at once."""

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, base_url: str) -> str:
        return chat_address(base_url)


class Endpoint:
    """A chat server as a prompt optimiser."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._instruction = options.instruction or shipped_instruction()

    def __call__(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> list[Rewrite]:
        """One rewrite a prompt; the seed is sent along, and whether it is heeded is the server's affair."""
        pairs = list(zip(prompts, seeds, strict=True))
        with open_client(_authorization(), timeout=self._options.timeout) as client:
            answers = ask_each(lambda pair: self._ask(client, *pair), pairs, concurrent=self._options.concurrent)
        return [
            judge(answer.text, prompt, max_words=self._options.max_words, is_complete=answer.is_complete)
            for answer, prompt in zip(answers, prompts, strict=True)
        ]

    def _body(self, prompt: str, seed: int) -> dict[str, Any]:
        options = self._options
        return {
            "model": options.model,
            "messages": messages(self._instruction, prompt),
            "temperature": options.temperature,
            "top_p": options.top_p,
            "max_tokens": options.max_tokens,
            "seed": seed,
        }

    def _ask(self, client: httpx.Client, prompt: str, seed: int) -> "_Answer":
        options = self._options
        url, body = f"{options.base_url}/chat/completions", self._body(prompt, seed)
        answer = post(client, url, body, retries=options.retries)
        if isinstance(answer, Trouble):
            raise ModelError(
                f"no answer from {options.base_url} in {options.retries + 1} attempts: {answer.message}",
                hint="start that server, or correct prompt_optimizer.options.base_url, or draw with --raw",
            )
        return _read(answer, options)


@dataclass(frozen=True, slots=True)
class _Answer:
    """The model's words, and whether it ended them itself."""

    text: str
    is_complete: bool


def build(options: Options, machine: Machine) -> PromptOptimizer:
    """The optimiser; nothing is sent before it is called."""
    del machine
    return Endpoint(options)


def _authorization() -> dict[str, str]:
    for variable in ("REALGEN_API_KEY", "OPENAI_API_KEY"):
        if key := os.environ.get(variable, "").strip():
            return bearer(key, variable=variable)
    return {}


def _read(response: httpx.Response, options: Options) -> _Answer:
    """The words of an answer; ModelError where the server refused or answered something else."""
    status = response.status_code
    if status in {401, 403}:
        raise ModelError(f"{options.base_url} refused the key", hint="set REALGEN_API_KEY to a key for that server")
    if status != 200:
        said = " ".join(text_of(response).split())[:200]
        hint = f"is {options.model!r} a model of that server, and does base_url end with its version?"
        raise ModelError(f"{options.base_url} answered with status {status}: {said}", hint=hint)
    try:
        choice = response.json()["choices"][0]
        content = choice["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        hint = "base_url must be that of an OpenAI-compatible server"
        raise ModelError(
            f"{options.base_url} answered with something else than a chat completion", hint=hint
        ) from error
    return _Answer(content if isinstance(content, str) else "", choice.get("finish_reason") != "length")
