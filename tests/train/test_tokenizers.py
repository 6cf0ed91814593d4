"""The two tokenizers, trained on a small corpus and opened by the classes that FluxPipeline uses."""

import pytest
from transformers import AutoTokenizer, CLIPTokenizer, T5TokenizerFast

from realgen.core.errors import DataError
from realgen.train.tokenizers import train_tokenizers

TEXTS = [
    f"{opening} a {colour} {thing} {place}, soft light."
    for opening in ("A photo of", "Portrait of", "a close-up of")
    for colour in ("red", "blue", "golden", "grey")
    for thing in ("cat", "fisherman", "sunflower", "bus", "mountain")
    for place in ("in the snow", "on a street", "at dawn", "near the harbour")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizers")
    train_tokenizers(TEXTS, path, clip_vocabulary=640, t5_vocabulary=160)
    return path


@pytest.fixture(scope="module")
def clip(folder):
    return CLIPTokenizer.from_pretrained(folder / "tokenizer")


@pytest.fixture(scope="module")
def t5(folder):
    return T5TokenizerFast.from_pretrained(folder / "tokenizer_2")


def test_files_are_those_of_flux(folder):
    common = {"special_tokens_map.json", "tokenizer_config.json"}
    assert {path.name for path in (folder / "tokenizer").iterdir()} == {"vocab.json", "merges.txt", *common}
    assert {path.name for path in (folder / "tokenizer_2").iterdir()} == {"tokenizer.json", "spiece.model", *common}


def test_special_ids_and_lengths(clip, t5):
    assert (t5.pad_token_id, t5.eos_token_id, t5.unk_token_id) == (0, 1, 2)
    assert (clip.model_max_length, t5.model_max_length) == (77, 64)
    assert clip.eos_token_id == len(clip) - 1 == clip.pad_token_id
    assert clip.bos_token_id == len(clip) - 2


def test_round_trip_in_lower_case(clip, t5):
    text = "A photo of a Red cat at dawn"
    for tokenizer in (clip, t5):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text.lower()
        assert tokenizer(text).input_ids == tokenizer(text.upper()).input_ids


def test_clip_knows_every_byte(clip):
    text = "café 日本 🙂"
    assert clip.decode(clip(text).input_ids, skip_special_tokens=True) == text


def test_clip_begins_and_ends_its_texts(clip):
    ids = clip("a cat", padding="max_length", max_length=77).input_ids
    assert ids[0] == clip.bos_token_id
    assert ids.index(clip.eos_token_id) == 3
    assert len(ids) == 77


def test_t5_pads_after_the_end(t5):
    batch = t5(["a cat", "a red bus"], padding="max_length", max_length=64, truncation=True)
    for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
        end = ids.index(1)
        assert len(ids) == 64
        assert set(ids[end + 1 :]) == {0}
        assert sum(mask) == end + 1
    assert batch.input_ids[0] != batch.input_ids[1]


def test_no_corpus_word_is_unknown(t5):
    assert not any(2 in t5(text).input_ids for text in TEXTS)


def test_auto_tokenizer_and_sentencepiece_agree(folder, clip, t5):
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer_2" / "spiece.model"))
    for text in TEXTS[:20]:
        assert AutoTokenizer.from_pretrained(folder / "tokenizer")(text).input_ids == clip(text).input_ids
        assert [*model.encode(text), 1] == t5(text).input_ids
    assert AutoTokenizer.from_pretrained(folder / "tokenizer_2")(TEXTS[0]).input_ids == t5(TEXTS[0]).input_ids


def test_an_empty_corpus_is_refused(tmp_path):
    with pytest.raises(DataError, match="no text"):
        train_tokenizers(["", "  "], tmp_path)
