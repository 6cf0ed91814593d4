"""A Qwen3-4B-Instruct-2507 checkpoint of reduced width in that repository's own layout, whose answer is known.

All weights are random and small but two: embeddings are nearly one-hot, and the first layer's feed-forward block leads
from each token of `ANSWER` to the next, so greedy or sampled, the model says `ANSWER` and ends. What differs from
Qwen3-4B-Instruct-2507: widths, numbers of layers and of shards, the vocabulary, and a shorter chat template.
"""

from pathlib import Path

import torch
from tokenizers import pre_tokenizers

from flux1_dev import ADDED, linear, save_shards, write_json

ANSWER = "A ginger cat asleep on an old stone wall in soft morning light"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WIDTH, HEAD, HEADS, KEY_HEADS, LAYERS = 384, 16, 4, 2, 2
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": HEAD,
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "intermediate_size": WIDTH,
    "max_position_embeddings": 262144,
    "max_window_layers": LAYERS,
    "model_type": "qwen3",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KEY_HEADS,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": WIDTH,
}


def save_qwen3(folder: Path, *, seed: int = 0) -> Path:
    """Write the checkpoint into `folder` and return it."""
    torch.manual_seed(seed)
    vocabulary, merges = words_of(ANSWER)
    ids = {**vocabulary, **{token: len(vocabulary) + index for index, token in enumerate(SPECIALS)}}
    end_of_text, _, end_of_turn = (ids[token] for token in SPECIALS)
    save_tokenizer(folder, vocabulary, merges, ids)
    write_json(folder / "config.json", {**CONFIG, "bos_token_id": end_of_text, "eos_token_id": end_of_turn})
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "transformers_version": "4.51.0"}
    ends = {"bos_token_id": end_of_text, "eos_token_id": [end_of_turn, end_of_text], "pad_token_id": end_of_text}
    write_json(folder / "generation_config.json", {**ends, **sampling})
    spoken = [ids[token] for token in ["Ċ", *tokens_of(ANSWER), SPECIALS[2]]]
    save_shards(folder, "model", weights_that_say(spoken), num=3)
    return folder


def tokens_of(text):
    """Its words, each with the letter that stands for the space before it."""
    return text.replace(" ", " Ġ").split(" ")


def words_of(text):
    """A byte-level vocabulary with a token a word, and its merges: each adds a letter to a word's beginning."""
    tokens, merges = sorted(pre_tokenizers.ByteLevel.alphabet()), []
    for word in tokens_of(text):
        for length in range(2, len(word) + 1):
            if word[:length] not in tokens:
                tokens.append(word[:length])
                merges.append((word[: length - 1], word[length - 1]))
    return {token: index for index, token in enumerate(tokens)}, merges


def weights_that_say(spoken):
    """Bfloat16 weights after which each token of `spoken` is followed by the next."""
    shapes = {"model.embed_tokens.weight": (WIDTH, WIDTH), "model.norm.weight": (WIDTH,)}
    for index in range(LAYERS):
        layer = f"model.layers.{index}"
        for part, inputs, outputs in (
            ("self_attn.q_proj", WIDTH, HEADS * HEAD),
            ("self_attn.k_proj", WIDTH, KEY_HEADS * HEAD),
            ("self_attn.v_proj", WIDTH, KEY_HEADS * HEAD),
            ("self_attn.o_proj", HEADS * HEAD, WIDTH),
            ("mlp.gate_proj", WIDTH, WIDTH),
            ("mlp.up_proj", WIDTH, WIDTH),
            ("mlp.down_proj", WIDTH, WIDTH),
        ):
            shapes |= linear(f"{layer}.{part}", inputs, outputs, has_bias=False)
        shapes |= {f"{layer}.self_attn.{part}.weight": (HEAD,) for part in ("q_norm", "k_norm")}
        shapes |= {f"{layer}.{part}.weight": (WIDTH,) for part in ("input_layernorm", "post_attention_layernorm")}
    weights = {name: 0.003 * torch.randn(shape) + (len(shape) == 1) for name, shape in shapes.items()}
    for name in ("model.embed_tokens", "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"):
        weights[f"{name}.weight"] += torch.eye(WIDTH)
    # A one-hot state is sqrt(WIDTH) high after its norm and WIDTH high after gate and up: the next token gets 40 of it.
    weights["model.layers.0.mlp.down_proj.weight"][spoken[1:], spoken[:-1]] += 40 / WIDTH
    return {name: weight.bfloat16() for name, weight in weights.items()}


def save_tokenizer(folder: Path, vocabulary, merges, ids) -> None:
    """vocab.json, merges.txt, tokenizer.json and tokenizer_config.json."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, processors
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("".join(f"{left} {right}\n" for left, right in merges), encoding="utf-8")
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    backend.add_special_tokens(SPECIALS)
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(ids[token]): {"content": token, **ADDED} for token in SPECIALS},
        "additional_special_tokens": SPECIALS[1:],
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 1010000,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(folder / "tokenizer_config.json", config)
