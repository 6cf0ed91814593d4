"""Text encoders that learn words no caption holds, by the subjects that captions hold."""

import re

import pytest
import torch
from diffusers import FluxPipeline

from realgen.core.errors import DataError
from realgen.train.photographs import Photograph
from realgen.train.unseen_words import (
    UnseenWordsTrainer,
    aligned,
    categories_of,
    nearest_subjects,
    read_words,
    subjects_of,
    without_known,
)
from realgen.train.vocabulary import vocabulary
from realgen.train.wordnet import LANDFORM, Sense

CAPTIONS = ["a photo of a cat, soft light", "a house", "a red house in the sun, blue sky"]
MEANINGS = {"moggy": "a cat", "chalet": "a house"}


class Teacher:
    """Knows two directions: what holds one of these letters, and the rest."""

    width = 2

    def __call__(self, texts):
        return torch.tensor([[1.0, 0.0] if "cat" in text or "tom" in text else [0.0, 1.0] for text in texts])


def trainer_of(folder, **knobs):
    pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    return UnseenWordsTrainer(
        pipeline, MEANINGS, CAPTIONS, **{"steps": 80, "batch": 12, "learning_rate": 5e-3, "seed": 0, **knobs}
    )


def test_words_are_read_once_and_only_whole_ones(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("house\ncat\nhouse\nOslo\nit's\nab\n", encoding="utf-8")
    assert read_words([file]) == ["house", "cat"]
    with pytest.raises(DataError, match="cannot read the words"):
        read_words([tmp_path / "gone.txt"])


def test_words_that_captions_hold_are_left_out_and_so_are_callings():
    assert without_known(["cat", "moggy", "light", "farmer"], CAPTIONS) == ["moggy"]


def test_subjects_are_those_of_photographs_with_a_category():
    photographs = [
        Photograph("a.png", torch.zeros(4, 4, 3).byte().numpy(), category, cls, (), "")
        for cls, category in (("cat", "animals"), ("spoonbill", None))
    ]
    found = subjects_of(photographs)
    assert found["a cat"] == {"animals"}
    assert found["a woman"] == {"people"}
    assert not any("spoonbill" in name for name in found)


SUBJECTS = {"a cat": {"animals"}, "a house": {"buildings"}, "scenery": {"outdoor"}}


def test_a_word_means_its_nearest_subject_where_that_is_near():
    assert nearest_subjects(Teacher(), ["tomcat", "hut"], SUBJECTS, least=0.5) == {
        "tomcat": "a cat",
        "hut": "a house",
    }
    assert nearest_subjects(Teacher(), ["hut"], {"a cat": {"animals"}}, least=0.5) == {}


class Dictionary:
    """Of each word, the names of its kinds, and whether it is a landform."""

    known = {"tomtit": ("bird", "cat"), "catacomb": ("house",), "tomb": (), "catena": ("land",)}

    def senses(self, word):
        file = LANDFORM if word == "catena" else 5
        if word in self.known:
            yield [Sense((name,), file, (), False) for name in (word, *self.known[word])]


def test_kinds_say_which_subjects_come_into_question():
    def categories(word):
        return categories_of(word, {"cat": {"animals"}, "house": {"buildings"}}, Dictionary())

    assert categories("tomtit") == {"animals"}
    assert categories("catena") == {"outdoor"}  # a landform whose kinds are no subjects
    assert categories("tomb") == categories("run") == set()


def test_a_word_is_never_what_it_only_sounds_like():
    words = ["tomtit", "catacomb", "tomb", "run"]
    heard = nearest_subjects(Teacher(), words, SUBJECTS, least=-1)
    assert heard["catacomb"] == "a cat"
    meant = nearest_subjects(Teacher(), words, SUBJECTS, least=-1, wordnet=Dictionary())
    assert meant == {
        "tomtit": "a cat",
        "catacomb": "a house",
        "tomb": "a cat",
    }  # of the last no kind is known; run is none


@pytest.mark.parametrize(
    ("ids", "like", "places"),
    [
        ([1, 2, 3, 9, 0, 0], [1, 2, 3, 9, 0, 0], [0, 1, 2, 3, 4, 5]),
        ([1, 7, 3, 9, 0, 0], [1, 2, 3, 9, 0, 0], [0, 1, 2, 3, 4, 5]),
        ([1, 7, 8, 3, 9, 0], [1, 2, 3, 9, 0, 0], [0, 1, 1, 2, 3, 4]),  # two pieces stand for one
        ([1, 7, 3, 9, 0, 0], [1, 4, 5, 3, 9, 0], [0, 2, 3, 4, 5, 5]),  # one stands for the last of two
        ([7, 8, 9, 0, 0, 0], [2, 9, 0, 0, 0, 0], [0, 0, 1, 2, 3, 4]),
        ([1, 5, 5, 9, 0, 0], [1, 5, 9, 0, 0, 0], [0, 1, 1, 2, 3, 4]),  # a repeated piece
    ],
)
def test_tokens_are_paired_from_both_ends(ids, like, places):
    assert aligned(torch.tensor(ids), torch.tensor(like)).tolist() == places


def test_a_word_comes_to_be_answered_as_its_subject_and_captions_stay(random_flux, tmp_path):
    trainer = trainer_of(random_flux)
    before = trainer.evaluate()
    assert before["fixed_clip_captions"] == pytest.approx(0, abs=1e-6)
    for index in range(80):
        trainer.step(index)
    after = trainer.evaluate()
    assert after["fixed_clip_words"] < before["fixed_clip_words"] / 2
    assert after["fixed_t5_words"] < before["fixed_t5_words"] * 0.8
    assert after["fixed_t5_captions"] < 0.1
    trainer.export(tmp_path / "model")
    exported = FluxPipeline.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert torch.equal(exported.text_encoder_2.shared.weight, trainer.pipeline.text_encoder_2.shared.weight)


def test_a_lesson_depends_on_its_index_alone(random_flux):
    trainer = trainer_of(random_flux)
    assert trainer.words(5, count=12) == trainer.words(5, count=12)
    assert trainer.words(5, count=12) != trainer.words(6, count=12)
    assert trainer.kept(5, count=3).texts == trainer.kept(5, count=3).like
    texts, like = trainer.words(5, count=12)
    assert all(("moggy" in text) == ("cat" in other) for text, other in zip(texts, like, strict=True))


def test_callings_are_answered_as_people_of_the_same_looks(random_flux):
    callings = vocabulary().callings
    texts, like = trainer_of(random_flux).words(0, count=600)
    people = [pair for pair in zip(texts, like, strict=True) if not re.search("moggy|chalet", pair[0])]
    assert 60 < len(people) < 120
    assert any("portrait" in text for text, _ in people)
    for text, other in people:
        who = next(who for who in ("woman", "man", "person") if re.search(rf"\b{who}\b", other))
        assert any(re.search(rf"\b{word}\b", text) for word in callings[who])
        assert all((look in text) == (look in other) for look in vocabulary().looks)


def test_every_calling_is_named_once_and_is_not_what_captions_call_people():
    callings = vocabulary().callings
    named = [word for words in callings.values() for word in words]
    assert len(named) == len(set(named))
    spoken = {word for names in vocabulary().people.values() for name in names for word in name.split()}
    assert not spoken & set(named)


def test_without_a_word_to_learn_there_is_no_training(random_flux):
    pipeline = FluxPipeline.from_pretrained(random_flux, dtype=torch.float32)
    with pytest.raises(DataError, match="no word lies near"):
        UnseenWordsTrainer(pipeline, {}, CAPTIONS, steps=1, batch=2, learning_rate=1e-3, seed=0)
