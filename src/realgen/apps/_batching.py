"""One thread that owns the scorers and scores for everybody: images of several callers meet in one batch.

Knows no HTTP. A caller takes its places in the queue first (`places`), so that what waits is bounded; then `submit`
hands the images over. Work that was given places is finished, whatever comes after.
"""

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from PIL.Image import Image

from realgen.apps._refusal import RefusalError
from realgen.core.errors import RealGenError, for_person
from realgen.core.images import ImageBatch
from realgen.core.protocols import Scorer
from realgen.core.types import Score

Answer = dict[str, list[Score]]
Observer = Callable[[str, Sequence[Score]], None]

_log = logging.getLogger("realgen.server")
_LOADING_WAIT, _LONGEST_WAIT = 5, 60  # seconds


@dataclass(frozen=True, slots=True)
class Served:
    """A scorer with the name and fingerprint of its model."""

    scorer: Scorer
    model: str


@dataclass(frozen=True, slots=True)
class _Job:
    images: Sequence[Image]
    prompts: Sequence[str]
    scorers: Sequence[str]
    answer: "Future[Answer]" = field(default_factory=Future)


class Batcher:
    """Scores in its own thread, in batches of about `batch` images, with at most `max_queue` images waiting or in work.

    `build` loads the scorers in that thread. A batch is closed when it is full or `wait` seconds after its first
    image. `observe` is told of every scorer's scores, batch by batch.
    """

    def __init__(
        self,
        build: Callable[[], Mapping[str, Served]],
        *,
        batch: int,
        max_queue: int,
        wait: float = 0.005,
        observe: Observer = lambda _name, _scores: None,
    ) -> None:
        self.served: Mapping[str, Served] = {}
        self.failure: RealGenError | None = None
        self.batch = batch
        self.is_draining = False
        self._build, self._max_queue, self._wait, self._observe = build, max_queue, wait, observe
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loaded = threading.Event()
        self._lock = threading.Lock()
        self._held = 0
        self._per_second = 0.0
        self._thread = threading.Thread(target=self._run, name="scorers", daemon=True)

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    def drain(self) -> None:
        """Take no new work; what has its places is finished. Takes no lock: it is called in signal handlers."""
        self.is_draining = True

    def stop(self) -> None:
        """End the thread after what was submitted so far; what comes later is refused."""
        self.drain()
        self._jobs.put(None)

    @property
    def is_ready(self) -> bool:
        """Whether new work is taken."""
        return self._loaded.is_set() and self.is_alive and not self.is_draining

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs: False after a failure to load."""
        return self._thread.is_alive()

    @property
    def depth(self) -> int:
        """Images that wait or are in work."""
        return self._held

    def check(self, num: int = 1) -> None:
        """Raise the RefusalError that `num` more images would get now."""
        if self.is_draining or (self._loaded.is_set() and not self.is_alive):
            raise RefusalError(503, "the server is stopping", hint="ask another replica", retry_after=_LOADING_WAIT)
        if not self._loaded.is_set():
            raise RefusalError(503, "the scorers are still loading", hint="ask again", retry_after=_LOADING_WAIT)
        if self._held + num > self._max_queue:
            message = f"the queue is full: {self._held} of {self._max_queue} images wait"
            raise RefusalError(
                429, message, hint="ask again later, or start another replica", retry_after=self._seconds()
            )

    @contextmanager
    def places(self, num: int) -> Iterator[None]:
        """Hold `num` places in the queue."""
        with self._lock:
            self.check(num)
            self._held += num
        try:
            yield
        finally:
            with self._lock:
                self._held -= num

    def submit(self, images: Sequence[Image], prompts: Sequence[str], scorers: Sequence[str]) -> "Future[Answer]":
        """The scores to come, by scorer, for which places are held; cancelled before their turn, they are not made."""
        if not self.is_alive:
            raise RefusalError(503, "the server stopped", hint="ask another replica")
        job = _Job(images, prompts, scorers)
        self._jobs.put(job)
        return job.answer

    def _seconds(self) -> int:
        """Seconds until what waits now is scored."""
        left = self._held / self._per_second if self._per_second else 1.0
        return min(max(math.ceil(left), 1), _LONGEST_WAIT)

    def _run(self) -> None:
        try:
            self.served = self._build()
            self._loaded.set()
            while jobs := self._gather():
                began = time.monotonic()
                num = self._score(jobs)
                rate = num / max(time.monotonic() - began, 1e-6)
                self._per_second = rate if not self._per_second else 0.8 * self._per_second + 0.2 * rate
        except (RealGenError, MemoryError, RuntimeError, OSError) as error:
            self.failure = for_person(error)
            if self.failure is None:
                raise
        finally:
            self.is_draining = True
            self._refuse_waiting()

    def _gather(self) -> list[_Job]:
        """The next batch of jobs; none at the end."""
        jobs: list[_Job] = []
        until, num = math.inf, 0
        while num < self.batch:
            try:
                job = self._jobs.get(timeout=None if not jobs else max(until - time.monotonic(), 0))
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)
                break
            until = min(until, time.monotonic() + self._wait)
            jobs.append(job)
            num += len(job.images)
        return jobs

    def _score(self, jobs: Sequence[_Job]) -> int:
        """Answer `jobs`, each scorer once over all who want it; jobs that want the same share what is derived."""
        jobs = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
        batches: dict[tuple[int, ...], ImageBatch] = {}
        answers: list[Answer] = [{} for _ in jobs]
        for name in sorted({name for job in jobs for name in job.scorers}):
            wanting = tuple(index for index, job in enumerate(jobs) if name in job.scorers)
            if wanting not in batches:
                batches[wanting] = ImageBatch([image for index in wanting for image in jobs[index].images])
            prompts = [prompt for index in wanting for prompt in jobs[index].prompts]
            scores = ask(self.served[name].scorer, batches[wanting], prompts)
            self._observe(name, scores)
            rest = iter(scores)
            for index in wanting:
                answers[index][name] = [next(rest) for _ in jobs[index].images]
        for job, answer in zip(jobs, answers, strict=True):
            job.answer.set_result(answer)
        return sum(len(job.images) for job in jobs)

    def _refuse_waiting(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None and job.answer.set_running_or_notify_cancel():
                job.answer.set_exception(RefusalError(503, "the server stopped", hint="ask another replica"))


def ask(scorer: Scorer, images: Sequence[Image], prompts: Sequence[str], *, is_second_try: bool = False) -> list[Score]:
    """One Score an image, whatever the plug-in does.

    Where it raises, each image is scored alone, so that one caller's picture does not cost another's its score.
    """
    try:
        scores = [_as_score(score) for score in scorer(images, prompts)]
    except Exception as error:  # noqa: BLE001  the boundary that calls a plug-in
        if not is_second_try:
            _log.warning("a scorer raised", exc_info=error)
        if len(prompts) > 1:
            pairs = zip(images, prompts, strict=True)
            return [ask(scorer, [image], [prompt], is_second_try=True)[0] for image, prompt in pairs]
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return [Score(None, reason=f"the scorer raised {said[:200]}") for _ in prompts]
    if len(scores) != len(prompts):
        return [Score(None, reason=f"the scorer gave {len(scores)} scores for {len(prompts)} images")] * len(prompts)
    return scores


def _as_score(score: Score) -> Score:
    return Score(None if score.value is None else float(score.value), str(score.reason))
