"""Trains the two tokenizers of a FLUX.1 folder on captions and prompts.

CLIP's is a byte-level BPE that ends words with `</w>`; T5's is a SentencePiece Unigram model. Both fold case,
since a small vocabulary has no room for two spellings. Files are laid out as in FLUX.1-dev.
"""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from realgen.core.errors import DataError

CLIP_VOCABULARY, CLIP_LENGTH = 4096, 77
T5_VOCABULARY, T5_LENGTH = 6144, 64
"""Sizes of the vocabularies and the longest texts, in tokens."""

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # as CLIPTokenizer
)


def train_tokenizers(
    texts: Iterable[str],
    folder: str | Path,
    *,
    clip_vocabulary: int = CLIP_VOCABULARY,
    t5_vocabulary: int = T5_VOCABULARY,
) -> None:
    """Writes `folder`/tokenizer and `folder`/tokenizer_2."""
    corpus = [text for text in texts if text.strip()]
    if not corpus:
        raise DataError("there is no text to train tokenizers on", hint="give captions or prompts")
    train_clip_tokenizer(corpus, Path(folder) / "tokenizer", vocabulary=clip_vocabulary)
    train_t5_tokenizer(corpus, Path(folder) / "tokenizer_2", vocabulary=t5_vocabulary)


# ---- CLIP -----------------------------------------------------------------------------------------------


def train_clip_tokenizer(texts: Sequence[str], folder: Path, *, vocabulary: int) -> None:
    """256 bytes, 256 bytes that end a word, the merges, the start and the end: CLIP's own order."""
    merges = _merges(texts, vocabulary)
    alphabet = _byte_letters()
    tokens = alphabet + [f"{letter}</w>" for letter in alphabet]
    tokens += [left + right for left, right in merges[: vocabulary - len(tokens) - 2]]
    kept = merges[: len(tokens) - 2 * len(alphabet)]
    names = dict.fromkeys([*tokens, _START, _END])
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "vocab.json", {token: index for index, token in enumerate(names)})
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in kept)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": _START, "eos_token": _END, "pad_token": _END, "unk_token": _END}
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", _clip_config(special, names))


def _clip_config(special: dict[str, str], names: dict[str, None]) -> dict[str, object]:
    order = {token: index for index, token in enumerate(names)}
    return {
        **special,
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": CLIP_LENGTH,
        "do_lower_case": True,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "added_tokens_decoder": {str(order[token]): _added(token) for token in (_START, _END)},
    }


def _byte_letters() -> list[str]:
    """The printable letters that stand for bytes, in CLIP's order: printable Latin-1 first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]


def _merges(texts: Sequence[str], vocabulary: int) -> list[tuple[str, str]]:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]


# ---- T5 -------------------------------------------------------------------------------------------------


def train_t5_tokenizer(texts: Sequence[str], folder: Path, *, vocabulary: int) -> None:
    """A SentencePiece model and the same as `tokenizer.json`; <pad> is 0, </s> is 1, <unk> is 2."""
    model = _train_unigram(texts, vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model)
    _as_fast_tokenizer(model).save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _write_json(folder / "special_tokens_map.json", special)
    config: dict[str, object] = {
        **special,
        "tokenizer_class": "T5Tokenizer",
        "model_max_length": T5_LENGTH,
        "extra_ids": 0,
        "additional_special_tokens": [],
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(i): _added(token) for i, token in enumerate(("<pad>", "</s>", "<unk>"))},
    }
    _write_json(folder / "tokenizer_config.json", config)


def _train_unigram(texts: Sequence[str], vocabulary: int) -> bytes:
    """`nmt_nfkc_cf` folds case within the model, so every reader of its files does."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        model_type="unigram",
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc_cf",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        max_sentence_length=20000,
        num_threads=1,
        minloglevel=2,
    )
    return written.getvalue()


def _as_fast_tokenizer(model: bytes) -> Tokenizer:
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    tokenizer = Tokenizer(models.Unigram([(piece.piece, piece.score) for piece in proto.pieces], unk_id=2))
    tokenizer.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return tokenizer


def _added(token: str) -> dict[str, object]:
    return {
        "content": token,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
