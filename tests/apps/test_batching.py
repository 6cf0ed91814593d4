import threading
import time
from concurrent.futures import CancelledError

import pytest

from realgen.apps._batching import Batcher, Served, ask
from realgen.apps._refusal import RefusalError
from realgen.core.errors import ModelError
from realgen.core.images import ImageBatch
from realgen.core.types import Score
from serving import Brightness, Gate, Redness, in_process, picture, wait_for


@pytest.fixture
def started():
    made = []

    def start(scorers, **options):
        build = scorers if callable(scorers) else lambda: {name: Served(one, "m") for name, one in scorers.items()}
        made.append(Batcher(build, **{"batch": 4, "max_queue": 100, "wait": 0.02, **options}))
        made[-1].start()
        return made[-1]

    yield start
    for batcher in made:
        batcher.stop()


def submit(batcher, num, scorers=("light",), *, seed=0):
    return batcher.submit([picture(seed + index) for index in range(num)], ["a"] * num, scorers)


def test_scores_come_back_to_those_who_asked(started):
    batcher = started({"light": Brightness(), "red": Redness()})
    answers = [submit(batcher, num, names, seed=10 * num) for num, names in ((1, ["light"]), (3, ["red", "light"]))]
    for answer, num in zip(answers, (1, 3), strict=True):
        images = [picture(10 * num + index) for index in range(num)]
        found = answer.result(10)
        assert [score.value for score in found["light"]] == in_process(Brightness(), images, ["a"] * num)
        if num == 3:
            assert [score.value for score in found["red"]] == in_process(Redness(), images, ["a"] * num)


def test_a_batch_closes_when_it_is_full(started):
    gate = Gate()
    batcher = started({"light": gate}, batch=4, wait=10)
    first = submit(batcher, 4)
    assert gate.entered.wait(5)
    later = [submit(batcher, 2) for _ in range(4)]
    gate.opened.set()
    for answer in (first, *later):
        assert answer.result(5)
    assert gate.batches == [4, 4, 4]


def test_a_batch_closes_when_it_has_waited(started):
    scorer = Brightness()
    assert submit(started({"light": scorer}, batch=100, wait=0.01), 2).result(5)
    assert scorer.batches == [2]


def test_scorers_share_what_is_derived_from_a_picture(started):
    made = []

    def small(image):
        made.append(image)
        return image.resize((2, 2))

    class Sharing(Brightness):
        def __call__(self, images, prompts):
            batch = ImageBatch.of(images)
            return [Score(batch.derived(index, small).getpixel((0, 0))[0] / 255) for index in range(len(batch))]

    batcher = started({"a": Sharing(), "b": Sharing()})
    found = submit(batcher, 3, ["a", "b"]).result(5)
    assert found["a"] == found["b"]
    assert len(made) == 3


def test_places_are_bounded_and_given_back(started):
    batcher = started({"light": Brightness()}, max_queue=5)
    wait_for(lambda: batcher.is_ready)
    with batcher.places(3):
        with pytest.raises(RefusalError, match="3 of 5") as caught, batcher.places(3):
            pass
        assert caught.value.status == 429
        assert caught.value.retry_after >= 1
        with batcher.places(2):
            assert batcher.depth == 5
    assert batcher.depth == 0


def test_the_wait_that_is_advised_grows_with_the_queue(started):
    batcher = started({"light": Brightness(seconds=0.1)}, max_queue=20, batch=1)
    submit(batcher, 1).result(5)
    advised = []
    for num in (15, 20):
        with batcher.places(num), pytest.raises(RefusalError) as caught:
            batcher.check(20)
        advised.append(caught.value.retry_after)
    assert 1 <= advised[0] <= advised[1] <= 60
    assert advised[1] >= 2


def test_work_that_is_taken_back_is_not_done(started):
    gate = Gate()
    batcher = started({"light": gate}, batch=1)
    first, second = submit(batcher, 1), submit(batcher, 1)
    assert gate.entered.wait(5)
    assert second.cancel()
    third = submit(batcher, 1)
    gate.opened.set()
    assert first.result(5)
    assert third.result(5)
    assert gate.batches == [1, 1]
    with pytest.raises(CancelledError):
        second.result(1)


def test_stop_finishes_what_was_submitted(started):
    gate = Gate()
    batcher = started({"light": gate})
    answers = [submit(batcher, 2) for _ in range(5)]
    batcher.stop()
    gate.opened.set()
    assert [len(answer.result(5)["light"]) for answer in answers] == [2] * 5
    wait_for(lambda: not batcher.is_alive)
    with pytest.raises(RefusalError, match="stopped") as caught:
        submit(batcher, 1)
    assert caught.value.status == 503


def test_what_is_submitted_after_the_end_is_refused_not_forgotten(started):
    gate = Gate()
    batcher = started({"light": gate}, batch=1)
    first = submit(batcher, 1)
    assert gate.entered.wait(5)
    batcher.stop()
    late = submit(batcher, 1)
    gate.opened.set()
    assert first.result(5)
    with pytest.raises(RefusalError, match="stopped"):
        late.result(5)


def test_draining_refuses_new_places_and_keeps_the_old(started):
    batcher = started({"light": Brightness()})
    wait_for(lambda: batcher.is_ready)
    with batcher.places(1):
        batcher.drain()
        with pytest.raises(RefusalError, match="stopping"):
            batcher.check()
        assert submit(batcher, 1).result(5)
    assert not batcher.is_ready


def test_a_failure_to_load_is_kept_for_the_person(started):
    def build():
        raise ModelError("no weights", hint="fetch them")

    batcher = started(build)
    wait_for(lambda: not batcher.is_alive)
    assert batcher.failure.message == "no weights"
    with pytest.raises(RefusalError, match="stopping"):
        batcher.check()


def test_memory_that_runs_out_on_loading_is_kept_for_the_person(started):
    def build():
        raise MemoryError

    batcher = started(build)
    wait_for(lambda: not batcher.is_alive)
    assert "out of memory" in batcher.failure.message


def test_before_it_has_loaded_it_asks_for_patience(started):
    loaded = threading.Event()
    batcher = started(lambda: loaded.wait(5) and {})
    with pytest.raises(RefusalError, match="loading") as caught:
        batcher.check()
    assert (caught.value.status, caught.value.retry_after) == (503, 5)
    loaded.set()


def test_observers_hear_of_every_batch(started):
    heard = []
    batcher = started({"light": Brightness()}, observe=lambda name, scores: heard.append((name, len(scores))))
    submit(batcher, 3).result(5)
    assert heard == [("light", 3)]


def test_a_batch_that_raises_is_tried_image_by_image():
    calls = []

    def moody(images, prompts):
        calls.append(len(prompts))
        if len(prompts) > 1 or prompts[0] == "bad":
            raise ValueError("cannot")
        return [Score(0.5)]

    scores = ask(moody, [picture()] * 3, ["a", "bad", "c"])
    assert [score.value for score in scores] == [0.5, None, 0.5]
    assert scores[1].reason == "the scorer raised ValueError: cannot"
    assert calls == [3, 1, 1, 1]


def test_one_who_asks_much_does_not_stop_the_clock(started):
    batcher = started({"light": Brightness()}, batch=4, wait=0.01)
    began = time.monotonic()
    assert len(submit(batcher, 30).result(5)["light"]) == 30
    assert time.monotonic() - began < 3
