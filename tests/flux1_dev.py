"""A FLUX.1-dev checkpoint of reduced width and random weights, in that repository's own layout.

Names of weights, shards, indexes and configurations are written out here, not by `save_pretrained`, whose layout
differs between major versions of transformers. What differs from FLUX.1-dev: widths, numbers of layers, and the
vocabularies. The autoencoder alone is written by diffusers, whose names are those of FLUX.1-dev.
"""

import io
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from realgen.train.tokenizers import train_clip_tokenizer

WIDTH, HEAD = 32, 128  # of both text encoders; of one attention head, which the rotary axes 16 + 56 + 56 fill
LAYERS = 2  # of each kind
SENTENCES = [
    f"{article} {noun} in the {place}."
    for article in ("a", "the", "one")
    for noun in ("cat", "dog", "old man")
    for place in ("snow", "morning light", "garden 1234567890", "café, far away...")
]
ADDED = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
CLIP_ADDED = {"<|startoftext|>": {**ADDED, "normalized": True}, "<|endoftext|>": ADDED}
SENTINELS = [f"<extra_id_{index}>" for index in range(100)]


def save_flux1_dev(folder: Path, *, seed: int = 0) -> Path:
    """Write the checkpoint into `folder` and return it."""
    torch.manual_seed(seed)
    classes = {
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "text_encoder_2": ("transformers", "T5EncoderModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "tokenizer_2": ("transformers", "T5TokenizerFast"),
        "transformer": ("diffusers", "FluxTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    write_json(folder / "model_index.json", {**diffusers_class("FluxPipeline"), **classes})
    write_json(folder / "scheduler/scheduler_config.json", SCHEDULER)
    num_clip = save_clip_tokenizer(folder / "tokenizer")
    num_t5 = save_t5_tokenizer(folder / "tokenizer_2")
    write_json(folder / "text_encoder/config.json", {**CLIP, "vocab_size": num_clip})
    save_file(random_weights(clip_shapes(num_clip)), folder / "text_encoder/model.safetensors", {"format": "pt"})
    write_json(folder / "text_encoder_2/config.json", {**T5, "vocab_size": num_t5 + 28})  # padded, as 32,100 to 32,128
    save_shards(folder / "text_encoder_2", "model", random_weights(t5_shapes(num_t5 + 28)), num=2)
    write_json(folder / "transformer/config.json", TRANSFORMER)
    save_shards(folder / "transformer", "diffusion_pytorch_model", random_weights(transformer_shapes()), num=3)
    save_autoencoder(folder / "vae")
    return folder


# ---- configurations -------------------------------------------------------------------------------------


def diffusers_class(name):
    return {"_class_name": name, "_diffusers_version": "0.30.0.dev0"}


SCHEDULER = {
    **diffusers_class("FlowMatchEulerDiscreteScheduler"),
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
CLIP = {
    "_name_or_path": "openai/clip-vit-large-patch14",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,  # not the tokenizer's: the state at the highest token is the pooled one
    "hidden_act": "quick_gelu",
    "hidden_size": WIDTH,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 4 * WIDTH,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "pad_token_id": 1,
    "projection_dim": WIDTH,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.3",
}
T5 = {
    "_name_or_path": "google/t5-v1_1-xxl",
    "architectures": ["T5EncoderModel"],
    "classifier_dropout": 0.0,
    "d_ff": 2 * WIDTH,
    "d_kv": WIDTH // 4,
    "d_model": WIDTH,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": LAYERS,
    "num_heads": 4,
    "num_layers": LAYERS,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.3",
    "use_cache": True,
}
TRANSFORMER = {
    **diffusers_class("FluxTransformer2DModel"),
    "attention_head_dim": HEAD,
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": WIDTH,
    "num_attention_heads": 1,
    "num_layers": LAYERS,
    "num_single_layers": LAYERS,
    "patch_size": 1,
    "pooled_projection_dim": WIDTH,
}


# ---- weights: every name and shape ----------------------------------------------------------------------


def linear(name, inputs, outputs, *, has_bias=True):
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if has_bias else {})


def clip_shapes(vocabulary, *, width=WIDTH, layers=LAYERS):
    norm = lambda name: {f"{name}.weight": (width,), f"{name}.bias": (width,)}  # noqa: E731
    shapes = {
        "text_model.embeddings.position_embedding.weight": (77, width),
        "text_model.embeddings.token_embedding.weight": (vocabulary, width),
    }
    for index in range(layers):
        layer = f"text_model.encoder.layers.{index}"
        shapes |= norm(f"{layer}.layer_norm1") | norm(f"{layer}.layer_norm2")
        shapes |= linear(f"{layer}.mlp.fc1", width, 4 * width) | linear(f"{layer}.mlp.fc2", 4 * width, width)
        for part in ("k_proj", "out_proj", "q_proj", "v_proj"):
            shapes |= linear(f"{layer}.self_attn.{part}", width, width)
    return shapes | norm("text_model.final_layer_norm")


def t5_shapes(vocabulary, *, width=WIDTH, hidden=2 * WIDTH, heads=4, layers=LAYERS):
    shapes = {"shared.weight": (vocabulary, width), "encoder.final_layer_norm.weight": (width,)}
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, heads)
    for index in range(layers):
        attention, feed_forward = (f"encoder.block.{index}.layer.{half}" for half in (0, 1))
        for part in "qkvo":
            shapes |= linear(f"{attention}.SelfAttention.{part}", width, width, has_bias=False)
        for part, inputs, outputs in (("wi_0", width, hidden), ("wi_1", width, hidden), ("wo", hidden, width)):
            shapes |= linear(f"{feed_forward}.DenseReluDense.{part}", inputs, outputs, has_bias=False)
        shapes |= {f"{half}.layer_norm.weight": (width,) for half in (attention, feed_forward)}
    return shapes


def transformer_shapes(*, width=HEAD, text=WIDTH, pooled=WIDTH, doubles=LAYERS, singles=LAYERS):
    shapes = linear("x_embedder", 64, width) | linear("context_embedder", text, width)
    for part, inputs in (("timestep_embedder", 256), ("guidance_embedder", 256), ("text_embedder", pooled)):
        shapes |= linear(f"time_text_embed.{part}.linear_1", inputs, width)
        shapes |= linear(f"time_text_embed.{part}.linear_2", width, width)
    for index in range(doubles):
        block = f"transformer_blocks.{index}"
        shapes |= linear(f"{block}.norm1.linear", width, 6 * width)
        shapes |= linear(f"{block}.norm1_context.linear", width, 6 * width)
        for part in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            shapes |= linear(f"{block}.attn.{part}", width, width)
        for part in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            shapes[f"{block}.attn.{part}.weight"] = (HEAD,)
        for part in ("ff", "ff_context"):
            shapes |= linear(f"{block}.{part}.net.0.proj", width, 4 * width)
            shapes |= linear(f"{block}.{part}.net.2", 4 * width, width)
    for index in range(singles):
        block = f"single_transformer_blocks.{index}"
        shapes |= linear(f"{block}.norm.linear", width, 3 * width) | linear(f"{block}.proj_mlp", width, 4 * width)
        shapes |= linear(f"{block}.proj_out", 5 * width, width)
        for part in ("to_q", "to_k", "to_v"):
            shapes |= linear(f"{block}.attn.{part}", width, width)
        shapes |= {f"{block}.attn.norm_q.weight": (HEAD,), f"{block}.attn.norm_k.weight": (HEAD,)}
    return shapes | linear("norm_out.linear", width, 2 * width) | linear("proj_out", width, 64)


def random_weights(shapes):
    """Bfloat16: matrices keep the size of what they are given, norms are near 1, all the rest is small."""
    weights = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape)
        if len(shape) == 2:
            drawn = drawn * shape[1] ** -0.5
        elif name.endswith(".weight"):
            drawn = 1 + 0.1 * drawn
        else:
            drawn = 0.1 * drawn
        weights[name] = drawn.bfloat16()
    return weights


def save_shards(folder: Path, stem: str, weights, *, num: int) -> None:
    """Weights in `num` files and the index that says which holds what."""
    names = sorted(weights)
    places = {}
    for shard in range(num):
        file = f"{stem}-{shard + 1:05}-of-{num:05}.safetensors"
        mine = names[shard * len(names) // num : (shard + 1) * len(names) // num]
        save_file({name: weights[name] for name in mine}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(mine, file)
    size = sum(weight.nbytes for weight in weights.values())
    write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places})


def save_autoencoder(folder: Path) -> None:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        act_fn="silu",
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        latent_channels=16,
        layers_per_block=2,
        norm_num_groups=2,
        sample_size=1024,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        up_block_types=("UpDecoderBlock2D",) * 4,
        use_post_quant_conv=False,
        use_quant_conv=False,
    )
    model.bfloat16().save_pretrained(folder)


# ---- tokenizers -----------------------------------------------------------------------------------------


def save_clip_tokenizer(folder: Path) -> int:
    """vocab.json, merges.txt and two configurations; returns the size of the vocabulary, whose last tokens end it."""
    train_clip_tokenizer(SENTENCES, folder, vocabulary=560)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    start, end = (
        {"content": token, **{key: value for key, value in CLIP_ADDED[token].items() if key != "special"}}
        for token in CLIP_ADDED
    )
    special = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end}
    write_json(folder / "special_tokens_map.json", special)
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(vocabulary[token]): {"content": token, **added} for token, added in CLIP_ADDED.items()
        },
        **{name: token["content"] for name, token in special.items()},
        "clean_up_tokenization_spaces": True,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    write_json(folder / "tokenizer_config.json", config)
    return len(vocabulary)


def save_t5_tokenizer(folder: Path) -> int:
    """spiece.model, tokenizer.json and two configurations; returns the size of the vocabulary."""
    import sentencepiece
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=trained,
        vocab_size=80,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(trained.getvalue())
    proto = sentencepiece.sentencepiece_model_pb2.ModelProto.FromString(trained.getvalue())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    last_first = [(sentinel, 0.0) for sentinel in reversed(SENTINELS)]
    backend = Tokenizer(models.Unigram([*pieces, *last_first], unk_id=2, byte_fallback=False))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    backend.add_special_tokens(["<pad>", "</s>", "<unk>", *reversed(SENTINELS)])
    backend.save(str(folder / "tokenizer.json"))
    save_t5_configuration(folder, num_pieces=len(pieces))
    return len(pieces) + len(SENTINELS)


def save_t5_configuration(folder: Path, *, num_pieces: int) -> None:
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    added = {0: "<pad>", 1: "</s>", 2: "<unk>"} | dict(enumerate(reversed(SENTINELS), start=num_pieces))
    config = {
        **special,
        "add_prefix_space": True,
        "added_tokens_decoder": {str(index): {"content": token, **ADDED} for index, token in added.items()},
        "additional_special_tokens": SENTINELS,
        "clean_up_tokenization_spaces": True,
        "extra_ids": len(SENTINELS),
        "legacy": True,
        "model_max_length": 512,
        "sp_model_kwargs": {},
        "tokenizer_class": "T5Tokenizer",
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", {"additional_special_tokens": SENTINELS, **special})


def write_json(file: Path, value) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
