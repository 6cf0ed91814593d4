from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from realgen.core.errors import ModelError
from realgen.core.spec import Machine
from realgen.prompt_optimizers.causal_lm import GumbelMax, Options, build, gumbel, keep_top_p

FLOAT32 = Machine(device="cpu", dtype="float32")
WORDS = [
    "red",
    "fox",
    "snow",
    "light",
    "lens",
    "skin",
    "sea",
    "stone",
    "morning",
    "window",
    "grey",
    "soft",
    "old",
    "man",
    "boat",
    "wave",
    "field",
    "sun",
    "rain",
    "street",
]
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "<|im_start|> assistant{% if enable_thinking %} think{% endif %}"
)
PROMPTS = ["a photo", "a photo of the old man and the sea and the boat", "photo of a", "a"]


def save_model(folder: Path, template: str | None = TEMPLATE, **config: Any) -> Path:
    """A Qwen3-shaped model with random weights, and a tokenizer of whole words."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*specials, "a", "photo", "of", "the", "and", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    ends = {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None}
    settings = {"vocab_size": len(vocabulary), **shape, **heads, **ends, **config}
    Qwen3ForCausalLM(Qwen3Config(**settings)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def options(folder: Path, **changes: Any) -> Options:
    settings = {"instruction": "red light", "max_tokens": 12, "max_words": 6, "temperature": 1.5, "top_p": 0.95}
    return Options(model=str(folder), **{**settings, **changes})


def raw_answers(optimizer: Any, prompts: list[str], seeds: list[int]) -> list[str]:
    """What the model wrote, before it is judged."""
    return [answer for answer, _ in optimizer._answer([optimizer._ask(p) for p in prompts], seeds=seeds)]


def test_the_same_seed_gives_the_same_text_and_another_seed_another(folder: Path) -> None:
    optimizer = build(options(folder), FLOAT32)
    torch.manual_seed(1)
    first = raw_answers(optimizer, ["a photo"] * 3, [7, 8, 7])
    torch.manual_seed(2)  # the global generator has no say
    assert raw_answers(optimizer, ["a photo"] * 3, [7, 8, 7]) == first
    assert first[0] == first[2] != first[1]
    assert len(first[0].split()) > 3


def test_a_batch_is_the_same_as_its_prompts_alone(folder: Path) -> None:
    optimizer = build(options(folder), FLOAT32)
    seeds = [3, 4, 5, 6]
    alone = [raw_answers(optimizer, [p], [s])[0] for p, s in zip(PROMPTS, seeds, strict=True)]
    assert raw_answers(optimizer, PROMPTS, seeds) == alone
    assert raw_answers(optimizer, PROMPTS[::-1], seeds[::-1]) == alone[::-1]
    in_pairs = build(options(folder), FLOAT32.model_copy(update={"batch": 2}))
    assert in_pairs(PROMPTS, seeds=seeds) == optimizer(PROMPTS, seeds=seeds)


def test_a_temperature_of_zero_takes_the_likeliest_word(folder: Path) -> None:
    optimizer = build(options(folder, temperature=0), FLOAT32)
    assert len(set(raw_answers(optimizer, ["a photo"] * 2, [1, 2]))) == 1


def test_a_degenerate_answer_keeps_the_prompt_and_says_why(folder: Path) -> None:
    """A random model does not know the zebra."""
    rewrite = build(options(folder), FLOAT32)(["zebra"], seeds=[1])[0]
    assert rewrite.text == "zebra"
    assert rewrite.reason


def test_a_prompt_that_does_not_fit_is_kept_and_the_others_are_rewritten(folder: Path) -> None:
    optimizer = build(options(folder), FLOAT32)
    short, long = optimizer(["a photo", "fox " * 600], seeds=[1, 2])
    assert "too long for the prompt model" in long.reason
    assert "too long for" not in short.reason
    assert optimizer([], seeds=[]) == []


def test_thinking_is_off_unless_asked_for(folder: Path) -> None:
    assert build(options(folder), FLOAT32)._ask("a photo").endswith("assistant")
    assert build(options(folder, thinking=True), FLOAT32)._ask("a photo").endswith("think")


def test_a_template_without_a_system_role_gets_the_instruction_in_the_question(tmp_path: Path) -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE
    optimizer = build(options(save_model(tmp_path, template)), FLOAT32)
    assert "user red light\n\na photo" in optimizer._ask("a photo")


def test_a_lora_changes_the_answer_and_one_for_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    def save_lora(name: str, base: Path) -> str:
        wrapped = get_peft_model(Qwen3ForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"]))
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter)
        wrapped.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    plain = raw_answers(build(options(folder), FLOAT32), PROMPTS, [1, 2, 3, 4])
    tuned = build(options(folder, lora=save_lora("own", folder)), FLOAT32)
    assert raw_answers(tuned, PROMPTS, [1, 2, 3, 4]) != plain
    other = save_model(tmp_path / "other", hidden_size=48)
    with pytest.raises(ModelError, match="no LoRA for this model"):
        build(options(folder, lora=save_lora("other-lora", other)), FLOAT32)


def test_bad_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model at"):
        build(options(tmp_path / "nowhere"), FLOAT32)
    with pytest.raises(ModelError, match="no chat template"):
        build(options(save_model(tmp_path / "base", None)), FLOAT32)
    weights = save_model(tmp_path / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        build(options(tmp_path / "cut"), FLOAT32)
    (save_model(tmp_path / "odd") / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot load"):
        build(options(tmp_path / "odd"), FLOAT32)


def test_gumbel_max_samples_the_softmax() -> None:
    """20,000 draws from (0.6, 0.3, 0.1): each share within 4 standard errors (0.014) of its probability."""
    scores = torch.tensor([[0.6, 0.3, 0.1]]).log()
    sample = GumbelMax([0], temperature=1, top_p=1)
    draws = torch.stack([sample(torch.empty(0), scores).argmax() for _ in range(20_000)])
    shares = draws.bincount(minlength=3) / len(draws)
    assert torch.allclose(shares, scores.exp()[0], atol=0.014)
    assert torch.isfinite(gumbel(1000, torch.Generator().manual_seed(0))).all()


def test_top_p_keeps_the_fewest_likeliest_that_reach_it() -> None:
    """Of (0.1, 0.5, 0.15, 0.25) at 0.7: 0.5 alone is short of it, 0.5 + 0.25 is not."""
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    assert keep_top_p(logits, 0.7).isfinite().tolist() == [[False, True, False, True]]
    assert keep_top_p(logits, 0.01).isfinite().sum() == 1
    assert torch.equal(keep_top_p(logits, 1), logits)
