"""Teaches a FLUX.1's text encoders words that no caption holds, by the subjects that captions do hold.

A sentence encoder says which subject a word lies nearest to. It goes by pieces of words too (`petunia` lies near a pet)
and by rarer senses (`tundra`, a truck), so where a WordNet is given, only subjects of the categories that the word's
kinds belong to come into question. Callings, of which it says what they deal with (of a farmer, vegetables), are people
by the vocabulary. Both encoders then learn to answer a text with the word as they answered the same text with that
subject, and to answer captions as before. No picture is seen.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from realgen.core.errors import DataError
from realgen.train.optimizers import MuonAdamW
from realgen.train.photographs import Photograph
from realgen.train.precision import computing_in
from realgen.train.run import warmup_cosine
from realgen.train.scaffold import save_pipeline
from realgen.train.text_distillation import Teacher, tokenize
from realgen.train.vocabulary import pick, vocabulary, with_article
from realgen.train.wordnet import LANDFORM, WordNet

ADAM_NAMES = ("*embed*", "*relative*")
TABLE_RATE = 10.0
"""Learning rate of the tables of tokens over the others' and over their own spread: a word is seen seldom."""
FRAME = "a photo of {}"
"""What words and subjects are compared in: alone, `pet` is as near to `petunia` as `flower` is."""
MAX_SUBJECT_WORDS = 2
LENGTHS = (24, 24, 24, 64)
"""T5's padded lengths, in turn: generators read texts at the last, and the others are three times as fast."""
CAPTION_SHARE = 8
"""One caption to so many texts with an unseen word."""
CALLINGS = 0.15
"""Share of those texts whose word is a calling: prompts ask for people more than for any other thing."""
LOOKED = 0.5
"""Share of callings with a word for somebody's looks."""


def read_words(files: Sequence[Path]) -> list[str]:
    """The lower-case words of three letters or more, a word a line, in the files' order."""
    words: dict[str, None] = {}
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"cannot read the words {file}: {error}", hint="give a UTF-8 file, a word a line"
            ) from error
        words.update(dict.fromkeys(word for word in lines if re.fullmatch(r"[a-z]{3,}", word)))
    return list(words)


def subjects_of(photographs: Sequence[Photograph]) -> dict[str, set[str]]:
    """What captions call the subjects of photographs that have a category, with their articles; and the categories."""
    words = vocabulary()
    found = {name: {"people"} for person in words.people.values() for name in person}
    for cls, category in {(one.cls, one.category) for one in photographs if one.category}:
        for name in (*words.word(cls).names, *words.word(cls).kinds):
            found.setdefault(name, set()).add(category)
    return {name: found[name] for name in sorted(found) if len(_bare(name).split()) <= MAX_SUBJECT_WORDS}


def categories_of(word: str, subjects: Mapping[str, set[str]], wordnet: WordNet) -> set[str]:
    """Of each of the word's senses, the categories of its nearest kind that is a subject; landforms are outdoors.

    `subjects` are without articles here.
    """
    found: set[str] = set()
    for kinds in wordnet.senses(word):
        named = (subjects[name] for kind in kinds for name in kind.names if name in subjects)
        found |= next(named, {"outdoor"} if kinds[0].file == LANDFORM else set())
    return found


def nearest_subjects(
    teacher: Teacher,
    words: Sequence[str],
    subjects: Mapping[str, set[str]],
    *,
    least: float,
    wordnet: WordNet | None = None,
) -> dict[str, str]:
    """Each word's nearest subject by the teacher's cosine, where that is `least` or more.

    With a WordNet, words that are no nouns of things are left out, and a word whose categories it knows is compared
    with subjects of these alone.
    """
    names = list(subjects)
    bare = {_bare(subject): categories for subject, categories in subjects.items()}
    known = _embed(teacher, [_bare(subject) for subject in names])
    if wordnet is None:
        allowed = {word: set[str]() for word in words}
    else:
        allowed = {word: categories_of(word, bare, wordnet) for word in words if any(wordnet.senses(word))}
    words, found = list(allowed), dict[str, str]()
    for start in range(0, len(words), 1024):
        chunk = words[start : start + 1024]
        for word, cosines in zip(chunk, _embed(teacher, chunk) @ known.T, strict=True):
            if allowed[word]:
                cosines[[not subjects[name] & allowed[word] for name in names]] = -torch.inf
            place = int(cosines.argmax())
            if cosines[place] >= least:
                found[word] = names[place]
    return found


def without_known(words: Sequence[str], captions: Sequence[str]) -> list[str]:
    """The words that stand in no caption and are neither callings nor looks."""
    held = {word for caption in captions for word in re.findall(r"[a-z]+", caption.lower())}
    held.update(*vocabulary().callings.values(), vocabulary().looks)
    return [word for word in words if word not in held]


class Lesson(NamedTuple):
    """Texts, and what to answer them as."""

    texts: list[str]
    like: list[str]


class UnseenWordsTrainer:
    """Trains `pipeline`'s two text encoders towards their own former answers."""

    dtype = torch.bfloat16
    """What matrix products compute in; wiring sets the machine's."""

    def __init__(
        self,
        pipeline: FluxPipeline,
        meanings: Mapping[str, str],
        captions: Sequence[str],
        *,
        steps: int,
        batch: int,
        learning_rate: float,
        seed: int,
        export_dtype: torch.dtype = torch.float32,
    ) -> None:
        if not meanings:
            raise DataError("no word lies near a subject", hint="give more words, or a smaller least_cosine")
        self.pipeline, self.meanings, self.captions = pipeline, list(meanings.items()), list(captions)
        self.steps, self.batch, self.learning_rate, self.seed = steps, batch, learning_rate, seed
        self.export_dtype = export_dtype
        self.module = nn.ModuleDict({"clip": pipeline.text_encoder, "t5": pipeline.text_encoder_2})
        self.module.requires_grad_(True).eval()
        self.former = copy.deepcopy(self.module).requires_grad_(False)
        self.spread = [
            states.var(0).mean() for states in self._answers(*self._tokens(self.captions[:256], LENGTHS[-1]))
        ]
        tables = [encoder.get_input_embeddings().weight for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)]
        others = [
            (name, value) for name, value in self.module.named_parameters() if all(value is not one for one in tables)
        ]
        self.optimizer = MuonAdamW(others, lr=learning_rate, weight_decay=0.0, adam_names=ADAM_NAMES)
        self.table_rates = [TABLE_RATE * learning_rate * float(table.detach().std()) for table in tables]
        self.table_optimizer = torch.optim.AdamW([{"params": [table]} for table in tables], weight_decay=0.0)

    def words(self, index: int, *, count: int) -> Lesson:
        """`count` texts with an unseen word each, which depend on (seed, index) alone."""
        rng = np.random.default_rng((self.seed, index))
        heads = vocabulary().heads["any"]
        texts, like = [], []
        for _ in range(count):
            if rng.random() < CALLINGS:
                word, subject = _called(rng)
                head = pick((*heads, *vocabulary().heads["official"]), rng)
            else:
                word, subject = pick(self.meanings, rng)
                head = pick(heads, rng)
            tail = self._tail(rng) if rng.random() < 0.25 else ""
            texts.append(head.format(x=with_article(word)) + tail)
            like.append(head.format(x=subject) + tail)
        return Lesson(texts, like)

    def kept(self, index: int, *, count: int) -> Lesson:
        """`count` captions, to be answered as they were."""
        places = np.random.default_rng((self.seed, index, 1)).integers(len(self.captions), size=count)
        captions = [self.captions[int(place)] for place in places]
        return Lesson(captions, captions)

    def _tail(self, rng: np.random.Generator) -> str:
        """What some caption says after its subject."""
        _, comma, rest = self.captions[int(rng.integers(len(self.captions)))].partition(", ")
        return comma + rest

    def step(self, index: int) -> Mapping[str, float]:
        """One optimiser step."""
        length = LENGTHS[index % len(LENGTHS)]
        lessons = self.words(index, count=self.batch), self.kept(index, count=max(1, self.batch // CAPTION_SHARE))
        with computing_in(self.dtype, self.pipeline.device):
            found = [
                self._errors(lesson, length) for lesson, length in zip(lessons, (length, LENGTHS[-1]), strict=True)
            ]
        (words_clip, words_t5), (kept_clip, kept_t5) = found
        loss = words_clip + words_t5 + kept_clip + kept_t5
        loss.backward()
        share = warmup_cosine(index, steps=self.steps, warmup=50, floor=0.02)
        self.optimizer.clip(1.0)
        self.optimizer.step(self.learning_rate * share)
        for group, rate in zip(self.table_optimizer.param_groups, self.table_rates, strict=True):
            group["lr"] = rate * share
        self.table_optimizer.step()
        self.table_optimizer.zero_grad(set_to_none=True)
        figures = {"clip_words": words_clip, "t5_words": words_t5, "clip_captions": kept_clip, "t5_captions": kept_t5}
        return {name: value.item() for name, value in figures.items()}

    def _errors(self, lesson: Lesson, length: int) -> tuple[Tensor, Tensor]:
        """Mean squared error of CLIP's pooled state, and of T5's states padded to `length`.

        Over the variance from caption to caption: most of a state is the same for all texts, and would hide the rest.
        """
        clip_ids, t5_ids = self._tokens(lesson.texts, length)
        former_clip, former_t5 = self._tokens(lesson.like, length)
        pooled, states = self._answers(former_clip, former_t5)
        wanted = torch.stack(
            [row[aligned(ids, old)] for row, ids, old in zip(states, t5_ids.cpu(), former_t5.cpu(), strict=True)]
        )
        clip = F.mse_loss(self.module["clip"](clip_ids).pooler_output.float(), pooled) / self.spread[0]
        t5 = F.mse_loss(self.module["t5"](t5_ids)[0].float(), wanted) / self.spread[1]
        return clip, t5

    @torch.no_grad()
    def _answers(self, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
        """CLIP's pooled states (B, D) and T5's (B, T, D) as they were before the training."""
        return self.former["clip"](clip_ids).pooler_output.float(), self.former["t5"](t5_ids)[0].float()

    def _tokens(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Ids for CLIP, as long as the longest, and for T5, padded to `length`."""
        clip, t5, _ = tokenize(self.pipeline, texts, length=length, clip_padding="longest")
        return clip, t5

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """The errors of a fixed lesson, at full length."""
        words, captions = (self._errors(draw(0, count=128), LENGTHS[-1]) for draw in (self.words, self.kept))
        return {
            "fixed_clip_words": float(words[0]),
            "fixed_t5_words": float(words[1]),
            "fixed_clip_captions": float(captions[0]),
            "fixed_t5_captions": float(captions[1]),
        }

    def preview(self) -> list[Image.Image]:
        """Nothing to see."""
        return []

    def export(self, folder: Path) -> None:
        """Write the whole FLUX.1 folder."""
        save_pipeline(self.pipeline, folder, dtype=self.export_dtype)

    def state_dict(self) -> dict[str, Any]:
        """Encoders and optimiser: the former answers are those of the model that the recipe names."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "tables": self.table_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.table_optimizer.load_state_dict(state["tables"])


def aligned(ids: Tensor, like: Tensor) -> Tensor:
    """For each of the tokens `ids` (T,), the place of the token of `like` (T,) whose state it should have.

    Both share a beginning and an end; what differs between is aligned at its end, so that the last piece of a word
    stands for the last piece of the subject. Padding is paired with padding.
    """
    length = len(ids)
    differs = (ids != like).nonzero()
    if not len(differs):
        return torch.arange(length)
    start = int(differs[0])
    ends = [int((row != row[-1]).nonzero()[-1]) + 1 for row in (ids, like)]
    tail = 0
    while min(ends) - tail > start and ids[ends[0] - 1 - tail] == like[ends[1] - 1 - tail]:
        tail += 1
    shift = ends[0] - ends[1]
    places = torch.arange(length) - shift
    between = torch.arange(start, ends[0] - tail)
    places[:start] = torch.arange(start)
    places[between] = (between - shift).clamp(min=start, max=ends[1] - tail - 1)
    return places.clamp(0, length - 1)


@cache
def _everyone() -> list[tuple[str, str]]:
    return [(word, who) for who, words in vocabulary().callings.items() for word in words]


def _called(rng: np.random.Generator) -> tuple[str, str]:
    """A calling without and what it is answered as with its article, both of the same looks."""
    word, who = pick(_everyone(), rng)
    looks = f"{pick(vocabulary().looks, rng)} " if rng.random() < LOOKED else ""
    return looks + word, with_article(looks + who)


def _embed(teacher: Teacher, names: Sequence[str]) -> Tensor:
    texts = [FRAME.format(with_article(name)) for name in names]
    return torch.cat([teacher(texts[start : start + 256]) for start in range(0, len(texts), 256)])


def _bare(name: str) -> str:
    return re.sub(r"^(an?|the) ", "", name)
