"""Rewriting, length checks, order and scores, with a generator of flat colours."""

import io
import itertools

import pytest
import torch
from PIL import Image

from realgen import pipeline
from realgen.core.errors import InputError, ModelError
from realgen.core.types import Progress, Request, Rewrite, Sample, Score, ScorerInfo


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


TRUNCATED = png(Image.effect_noise((64, 64), 90))[:1000]


class Colours:
    """Draws the seed as a colour; reads 8 words."""

    max_text_tokens = 8

    def __init__(self):
        self.asked = []

    def num_text_tokens(self, text):
        return len(text.split())

    def can_read(self, text):
        return any(word.isascii() for word in text.split())

    def __call__(self, texts, *, seeds, size=None):
        self.asked.append((list(texts), list(seeds), size))
        yield Progress(1, 1)
        for seed in seeds:
            yield Image.new("RGB", size or (4, 4), (seed, 0, 0))


def shout(prompts, *, seeds):
    return [Rewrite(f"{prompt}, {seed}") for prompt, seed in zip(prompts, seeds, strict=True)]


def ramble(prompts, *, seeds):
    return [Rewrite("word " * 9) for _ in prompts]


def samples_of(requests, generator, optimizer=None, batch=2):
    items = pipeline.generate(requests, generator, optimizer=optimizer, batch=batch)
    return [item for item in items if not isinstance(item, Progress)]


def test_samples_come_in_order_and_in_batches():
    generator = Colours()
    samples = samples_of([Request("a", seed) for seed in range(5)], generator)
    assert [sample.image.getpixel((0, 0))[0] for sample in samples] == [0, 1, 2, 3, 4]
    assert [len(texts) for texts, _, _ in generator.asked] == [2, 2, 1]
    assert all(sample.text == "a" and sample.note == "" for sample in samples)


def test_a_batch_holds_one_size():
    generator = Colours()
    requests = [Request("a", 0, size=(4, 4)), Request("b", 1, size=(8, 8)), Request("c", 2, size=(8, 8))]
    samples = samples_of(requests, generator)
    assert [sample.image.size for sample in samples] == [(4, 4), (8, 8), (8, 8)]
    assert [size for _, _, size in generator.asked] == [(4, 4), (8, 8)]


def test_the_text_is_the_rewrite_and_the_prompt_is_kept():
    (sample,) = samples_of([Request("a cat", 3)], Colours(), shout)
    assert (sample.request.prompt, sample.text, sample.note) == ("a cat", "a cat, 3", "")


def test_too_long_a_rewrite_falls_back_to_the_prompt_and_says_so():
    (sample,) = samples_of([Request("a cat", 3)], Colours(), ramble)
    assert sample.text == "a cat"
    assert sample.note == "the rewrite has 9 tokens, the model reads 8"


def test_too_long_a_prompt_is_an_error_before_anything_is_drawn():
    generator = Colours()
    with pytest.raises(InputError, match="9 tokens, the model reads 8"):
        samples_of([Request("fine", 0), Request("word " * 9, 1)], generator)
    assert generator.asked == []


def test_progress_passes_through():
    items = list(pipeline.generate([Request("a", 0)], Colours(), optimizer=None, batch=1))
    assert isinstance(items[0], Progress)


# ---- scores ---------------------------------------------------------------------------------------------


class Redness:
    """Scores the red channel of the first pixel; keeps what it was shown."""

    info = ScorerInfo(0, 255, is_detector=False, is_held_out=False, licence="", source="")

    def __init__(self):
        self.seen = []

    def __call__(self, images, prompts):
        self.seen.append((images, list(prompts)))
        return [
            Score(None, "unreadable") if index in images.reasons else Score(float(images[index].getpixel((0, 0))[0]))
            for index in range(len(images))
        ]


class Away:
    """A scorer whose model cannot be reached."""

    info = Redness.info

    def __call__(self, images, prompts):
        raise ModelError("the server does not answer")


def sample_of(seed, **fields):
    return Sample(Request(f"prompt {seed}", seed), f"text {seed}", Image.new("RGB", (2, 2), (seed, 0, 0)), **fields)


def test_samples_get_their_scores_in_order_and_in_batches():
    red = Redness()
    scored = list(pipeline.score([sample_of(seed) for seed in range(5)], {"red": red}, batch=2))
    assert [sample.scores for sample in scored] == [{"red": Score(float(seed))} for seed in range(5)]
    assert [prompts for _, prompts in red.seen] == [["prompt 0", "prompt 1"], ["prompt 2", "prompt 3"], ["prompt 4"]]


def test_scores_are_added_to_those_that_are_there_and_the_sample_is_not_changed():
    sample = sample_of(3, note="kept", scores={"old": Score(1.0), "red": Score(None)})
    (scored,) = pipeline.score([sample], {"red": Redness()}, batch=4)
    assert scored.scores == {"old": Score(1.0), "red": Score(3.0)}
    assert sample.scores == {"old": Score(1.0), "red": Score(None)}
    assert (scored.request, scored.text, scored.note) == (sample.request, sample.text, "kept")


def test_all_scorers_share_one_decoded_batch():
    first, second = Redness(), Redness()
    list(pipeline.score([sample_of(1)], {"a": first, "b": second}, batch=4))
    assert first.seen[0][0] is second.seen[0][0]


def test_progress_overtakes_the_samples_that_wait_for_their_batch():
    stream = [sample_of(0), Progress(1, 2), sample_of(1), Progress(2, 2), sample_of(2)]
    items = list(pipeline.score(stream, {"red": Redness()}, batch=2))
    assert [item.request.seed if isinstance(item, Sample) else item for item in items] == [
        Progress(1, 2),
        0,
        1,
        Progress(2, 2),
        2,
    ]


def test_a_scorer_that_cannot_answer_leaves_its_images_unscored_with_the_reason():
    (scored,) = pipeline.score([sample_of(1)], {"away": Away(), "red": Redness()}, batch=1)
    assert scored.scores == {"away": Score(None, "the server does not answer"), "red": Score(1.0)}


def test_a_scorer_s_own_bug_is_not_hidden():
    def short(images, prompts):
        return []

    with pytest.raises(ValueError, match="1 images, 0 scores"):
        list(pipeline.score([sample_of(1)], {"short": short}, batch=1))


def test_nothing_to_score():
    red = Redness()
    assert list(pipeline.score([], {"red": red}, batch=2)) == []
    assert list(pipeline.score([sample_of(1)], {}, batch=2)) == [sample_of(1)]
    assert red.seen == []


def test_a_broken_image_does_not_stop_the_others():
    broken = Image.open(io.BytesIO(TRUNCATED))
    images = [Image.new("RGB", (1, 1), (9, 0, 0)), broken]
    found = pipeline.score_images(images, ["a", "b"], scorers={"red": Redness()})
    assert found == [{"red": Score(9.0)}, {"red": Score(None, "unreadable")}]


def test_a_prompt_of_which_no_word_is_known_is_refused_before_any_is_drawn():
    generator = Colours()
    with pytest.raises(InputError, match="knows no word of '一只猫'") as caught:
        list(pipeline.generate([Request("a cat", 1), Request("一只猫", 2)], generator, optimizer=None, batch=1))
    assert "English" in caught.value.hint
    assert generator.asked == []


def test_a_prompt_that_is_translated_is_drawn_by_its_translation():
    def translate(prompts, *, seeds):
        return [Rewrite("a cat on a wall") if prompt == "一只猫" else Rewrite(prompt, "kept") for prompt in prompts]

    generator = Colours()
    requests = [Request("一只猫", 1), Request("кошка", 2)]
    made = pipeline.generate(requests, generator, optimizer=translate, batch=1)
    assert [item.text for item in itertools.islice(made, 2) if isinstance(item, Sample)] == ["a cat on a wall"]
    with pytest.raises(InputError, match="кошка"):
        list(made)
    assert [texts for texts, _, _ in generator.asked] == [["a cat on a wall"]]


def test_the_prompt_s_own_words_must_be_known_where_others_stand_around_them():
    with pytest.raises(InputError, match="一只猫"):
        list(
            pipeline.generate(
                [Request("一只猫", 1)],
                Colours(),
                optimizer=lambda prompts, seeds: [Rewrite(f"{prompt}, soft light") for prompt in prompts],
                batch=1,
            )
        )


def test_a_rewrite_that_the_model_cannot_read_keeps_the_prompt():
    (kept,) = pipeline.rewrite(
        [Request("a cat", 1)], Colours(), optimizer=lambda prompts, seeds: [Rewrite("红色的狐狸在雪地里跑过")]
    )
    assert kept == Rewrite("a cat", reason="the model knows no word of the rewrite")


def test_memory_that_runs_out_is_not_called_a_score():
    def broken(images, prompts):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        pipeline.score_images([Image.new("RGB", (1, 1))], ["a"], scorers={"broken": broken})


def test_a_full_stop_hides_no_prompt():
    def template(prompts, *, seeds):
        return [Rewrite(f"a photograph of {prompt.rstrip('.')}, soft light") for prompt in prompts]

    with pytest.raises(InputError, match="лиса"):
        list(pipeline.generate([Request("лиса.", 1)], Colours(), optimizer=template, batch=1))
