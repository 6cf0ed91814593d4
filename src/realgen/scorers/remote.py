"""A scorer behind `realgen serve`, on this machine or another; several replicas may serve the same.

Images travel losslessly, so the scores are those of the scorer itself. What cannot be scored in time is unscored, with
the reason; only a refusal at the beginning is an error. The token, where one is needed, comes from REALGEN_TOKEN.
"""

import io
import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Literal

import httpx2 as httpx
from PIL.Image import Image
from pydantic import Field, field_validator

from realgen.core import wire
from realgen.core.errors import ConfigError, ModelError
from realgen.core.images import ImageBatch
from realgen.core.protocols import Scorer
from realgen.core.spec import Machine, Spec
from realgen.core.types import Score
from realgen.hub.servers import asking, bearer, check_address, load_certificates, open_client
from realgen.scorers._replicas import Replicas, Trouble, exchange

_CONNECT_SECONDS = 5.0
_SLACK = 0.3  # seconds for a thread to say itself why it has no answer
_PART_BYTES = 512  # around an image


class Options(Spec):
    """The servers, the scorer and how long to wait."""

    urls: tuple[str, ...] = Field(min_length=1)
    """Addresses of the servers, such as http://127.0.0.1:8600; where one fails the next is asked."""

    scorer: str
    """The scorer's name on those servers."""

    timeout: float = Field(default=300.0, gt=0)
    """Seconds for a whole call, retries and waits included; images without a score by then are unscored."""

    attempt_timeout: float = Field(default=60.0, gt=0)
    """Seconds to wait for one answer before another attempt; longer than a full queue takes."""

    retries: int = Field(default=8, ge=0, le=100)
    """How often each server is asked again when the line breaks, it is busy, or its answer makes no sense."""

    concurrent: int = Field(default=4, ge=1, le=64)
    """Requests under way at once."""

    format: Literal["png", "webp"] = "png"
    """How images travel, both without loss: png is quick to make, webp is smaller on a slow line."""

    @field_validator("urls")
    @classmethod
    def _are_addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            check_address(url)
        cleaned = tuple(url.rstrip("/").removesuffix("/v1/score").removesuffix("/v1") for url in urls)
        if len(set(cleaned)) < len(cleaned):
            raise ValueError("an address is named twice")
        return cleaned


@dataclass(frozen=True, slots=True)
class _Encode:
    """An image as the bytes of a file. Equal records are computed once an image."""

    format: Literal["png", "webp"]

    def __call__(self, image: Image) -> bytes:
        file = io.BytesIO()
        if self.format == "png":
            image.save(file, "PNG", compress_level=1)
        else:
            image.save(file, "WEBP", lossless=True, quality=0, method=0)
        return file.getvalue()


class RemoteScorer:
    """One scorer of a group of servers. `info` is what the servers say of it."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._headers = _authorization()
        self._certificates = load_certificates()
        self._replicas = Replicas(options.urls, retries=options.retries)
        self._encode = _Encode(options.format)
        about = self._about()
        self._served = about.scorers[options.scorer]
        self._limits, self._batch = about.limits, about.batch
        self.info = self._served.info

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Score]:
        """One Score an image, in order."""
        batch = ImageBatch.of(images)
        if len(prompts) != len(batch):
            raise ValueError(f"{len(batch)} images, {len(prompts)} prompts")
        until = time.monotonic() + self._options.timeout
        scores = [Score(None, reason=self._obstacle(batch, prompts, index)) for index in range(len(batch))]
        sendable = [index for index, score in enumerate(scores) if not score.reason]
        with self._client() as client:
            size = self._chunk_size(len(sendable))
            chunks = [sendable[start : start + size] for start in range(0, len(sendable), size)]
            score = partial(self._score, client, batch, prompts, until)
            with asking(score, chunks, concurrent=self._options.concurrent) as asked:
                wait(asked, timeout=max(until - time.monotonic(), 0) + _SLACK)
            for future, chunk in zip(asked, chunks, strict=True):
                for index, score_of in zip(chunk, self._outcome(future, len(chunk)), strict=True):
                    scores[index] = score_of
        return scores

    def _about(self) -> wire.ScorersResponse:
        """What the servers serve; an error where they refuse us, do not answer, or do not know the scorer."""
        options, where = self._options, ", ".join(self._options.urls)
        with self._client() as client:

            def attempt(url: str) -> wire.ScorersResponse | Trouble:
                request = client.build_request("GET", f"{url}/v1/scorers")
                return exchange(client, request, wire.ScorersResponse, until=self._next_deadline(until))

            until = time.monotonic() + options.timeout
            about = self._replicas.ask(attempt, until=until)
        if isinstance(about, Trouble):
            if about.is_final:
                raise ConfigError(about.message, hint="is REALGEN_TOKEN the server's, and is it a realgen serve?")
            raise ModelError(f"no answer from {where}: {about.message}", hint="start it with: realgen serve")
        if options.scorer not in about.scorers:
            known = ", ".join(sorted(about.scorers))
            raise ConfigError(f"no scorer {options.scorer!r} at {where}", hint=f"known: {known}")
        return about

    def _next_deadline(self, until: float) -> float:
        return min(until, time.monotonic() + self._options.attempt_timeout)

    def _client(self) -> httpx.Client:
        return open_client(self._headers, certificates=self._certificates)

    def _obstacle(self, batch: ImageBatch, prompts: Sequence[str], index: int) -> str:
        """Why an image need not be sent; empty where it can be."""
        if index in batch.reasons:
            return batch.reasons[index]
        image, most = batch[index], self._limits.max_pixels
        if image.width * image.height > most:
            return f"{image.width} x {image.height} is more than the server's {most:,} pixels"
        if len(prompts[index]) > wire.MAX_PROMPT or not _is_text(prompts[index]):
            return f"the prompt is longer than {wire.MAX_PROMPT:,} characters, or no text"
        return ""

    def _chunk_size(self, num: int) -> int:
        """Images a request: shared out over the requests under way, at least a batch of the server's."""
        return min(self._limits.max_images, max(self._batch, math.ceil(num / self._options.concurrent)))

    def _score(
        self, client: httpx.Client, batch: ImageBatch, prompts: Sequence[str], until: float, chunk: Sequence[int]
    ) -> list[Score]:
        """Scores of the images of a chunk, in as many requests as their bytes need."""
        most = self._limits.max_image_bytes
        files = {index: batch.derived(index, self._encode) for index in chunk}
        large = {index: data for index, data in files.items() if len(data) > most}
        scores = {
            index: Score(None, f"{len(data):,} bytes as {self._options.format}, and the server takes {most:,}")
            for index, data in large.items()
        }
        for part in self._parted({index: data for index, data in files.items() if index not in large}, prompts):
            scores |= self._ask(client, part, prompts, until)
        return [scores[index] for index in chunk]

    def _parted(self, files: dict[int, bytes], prompts: Sequence[str]) -> Iterator[dict[int, bytes]]:
        """`files` in parts that the server takes as one body each."""
        part: dict[int, bytes] = {}
        num_bytes = 2 * _PART_BYTES
        for index, data in files.items():
            more = len(data) + _PART_BYTES + 6 * len(prompts[index])  # JSON writes a character in at most 6 bytes
            if part and num_bytes + more > self._limits.max_body_bytes:
                yield part
                part, num_bytes = {}, 2 * _PART_BYTES
            part[index] = data
            num_bytes += more
        if part:
            yield part

    def _ask(
        self, client: httpx.Client, files: dict[int, bytes], prompts: Sequence[str], until: float
    ) -> dict[int, Score]:
        """Scores of the images in `files`, or the reason why there are none."""
        name = self._options.scorer
        asked = wire.ScoreRequest(scorers=(name,), prompts=tuple(prompts[index] for index in files))
        kind = f"image/{self._options.format}"
        parts = [(wire.IMAGE_PART, (str(index), data, kind)) for index, data in files.items()]

        def attempt(url: str) -> wire.ScoreResponse | Trouble:
            data = {wire.REQUEST_PART: asked.model_dump_json()}
            request = client.build_request("POST", f"{url}/v1/score", data=data, files=parts)
            answer = exchange(client, request, wire.ScoreResponse, until=self._next_deadline(until))
            return answer if isinstance(answer, Trouble) else self._checked(answer, len(files))

        answer = self._replicas.ask(attempt, until=until)
        if isinstance(answer, Trouble):
            return dict.fromkeys(files, Score(None, f"no score from the server: {answer.message}"))
        return dict(zip(files, (score.score for score in answer.scores[name]), strict=True))

    def _checked(self, answer: wire.ScoreResponse, num: int) -> wire.ScoreResponse | Trouble:
        """`answer` where it is one to what was asked, by the model that was there at the beginning."""
        name = self._options.scorer
        if name not in answer.scores or len(answer.scores[name]) != num:
            return Trouble(f"an answer of {len(answer.scores.get(name, ()))} scores to {num} images")
        if answer.models[name] != self._served.model:
            return Trouble(f"it serves another model by now: {answer.models[name]}, not {self._served.model}")
        return answer

    def _outcome(self, future: "Future[list[Score]]", num: int) -> list[Score]:
        if future.done():
            return future.result()
        return [Score(None, f"no score from the server within {self._options.timeout:g} s")] * num


def build(options: Options, machine: Machine) -> Scorer:
    """The scorer; the servers are asked what they serve, and waited for while they load."""
    del machine
    return RemoteScorer(options)


def _authorization() -> dict[str, str]:
    token = os.environ.get("REALGEN_TOKEN", "").strip()
    return bearer(token, variable="REALGEN_TOKEN") if token else {}


def _is_text(prompt: str) -> bool:
    try:
        prompt.encode()
    except UnicodeEncodeError:
        return False
    return True
