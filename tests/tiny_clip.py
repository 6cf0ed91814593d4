"""Random CLIPs of a few thousand weights, as others lay them out, and OpenAI's architecture evaluated step by step."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

SIDE = 32
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
TEXTS = ["a cat", "a red rose", "two dogs", "night"]


def save_tokenizer(folder, *, ends_last=True):
    """CLIP's tokenizer over bytes; its start and end are the highest tokens, as in CLIP's vocabulary, or the lowest."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words, ends = [*letters, *(f"{letter}</w>" for letter in letters)], ["<|startoftext|>", "<|endoftext|>"]
    words = [*words, *ends] if ends_last else [*ends, *words]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=16)
    tokenizer.save_pretrained(folder)
    return tokenizer


def random_clip(*, seed=0, positions=16, act="quick_gelu", head_width=64, end=513, vocabulary=514, dtype=torch.float32):
    """Two layers a tower, 64 wide the text's, 128 the picture's; weights large enough that scores differ."""
    shared = {"num_hidden_layers": 2, "intermediate_size": 96, "hidden_act": act, "projection_dim": 24}
    text = {"hidden_size": 64, "num_attention_heads": 1, "vocab_size": vocabulary, "max_position_embeddings": positions}
    vision = {"hidden_size": 128, "num_attention_heads": 128 // head_width, "image_size": SIDE, "patch_size": 8}
    config = CLIPConfig(
        text_config={**shared, **text, "eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": end},
        vision_config={**shared, **vision},
        projection_dim=24,
    )
    model = CLIPModel(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator) * 0.15
        weight.copy_(noise + 1 if "norm" in name and name.endswith("weight") else noise)
    model.logit_scale.fill_(2.0)
    return model.to(dtype)


def openai_tensors(model):
    """The model's weights under OpenAI's names."""
    state, found = model.state_dict(), {}
    found["visual.class_embedding"] = state["vision_model.embeddings.class_embedding"]
    found["visual.conv1.weight"] = state["vision_model.embeddings.patch_embedding.weight"]
    found["visual.positional_embedding"] = state["vision_model.embeddings.position_embedding.weight"]
    found["positional_embedding"] = state["text_model.embeddings.position_embedding.weight"]
    found["token_embedding.weight"] = state["text_model.embeddings.token_embedding.weight"]
    found["visual.proj"] = state["visual_projection.weight"].T.contiguous()
    found["text_projection"] = state["text_projection.weight"].T.contiguous()
    found["logit_scale"] = state["logit_scale"]
    norms = {"ln_final": "text_model.final_layer_norm", "visual.ln_pre": "vision_model.pre_layrnorm"}
    norms["visual.ln_post"] = "vision_model.post_layernorm"
    for theirs, ours in (("visual.transformer", "vision_model"), ("transformer", "text_model")):
        for layer in range(2):
            block, from_ = f"{theirs}.resblocks.{layer}", f"{ours}.encoder.layers.{layer}"
            norms |= {f"{block}.ln_1": f"{from_}.layer_norm1", f"{block}.ln_2": f"{from_}.layer_norm2"}
            norms |= {f"{block}.mlp.c_fc": f"{from_}.mlp.fc1", f"{block}.mlp.c_proj": f"{from_}.mlp.fc2"}
            norms |= {f"{block}.attn.out_proj": f"{from_}.self_attn.out_proj"}
            for part in ("weight", "bias"):
                rows = [state[f"{from_}.self_attn.{name}_proj.{part}"] for name in "qkv"]
                found[f"{block}.attn.in_proj_{part}"] = torch.cat(rows)
    for theirs, ours in norms.items():
        found |= {f"{theirs}.{part}": state[f"{ours}.{part}"] for part in ("weight", "bias")}
    return {name: value.clone() for name, value in found.items()}


def picture_embedding(tensors, pixels, *, head_width=64, act="quick_gelu"):
    """Embedding (D,) of one preprocessed picture (3, S, S), from OpenAI's tensors."""
    patches = F.conv2d(pixels[None], tensors["visual.conv1.weight"], stride=8).flatten(2)[0].T
    x = torch.cat([tensors["visual.class_embedding"][None], patches]) + tensors["visual.positional_embedding"]
    x = _norm(tensors, "visual.ln_pre", x)
    x = _blocks(tensors, "visual.transformer.resblocks", x, head_width, act, mask=None)
    return _norm(tensors, "visual.ln_post", x[0]) @ tensors["visual.proj"]


def text_embedding(tensors, tokens, *, act="quick_gelu"):
    """Embedding (D,) of one text's tokens, its positions from both tables where there are two, read at its end."""
    x = tensors["token_embedding.weight"][torch.tensor(tokens)]
    if "positional_embedding_res" in tensors:
        is_first = (torch.arange(len(tensors["positional_embedding"])) < 20).float()[:, None]
        first, later = tensors["positional_embedding"], tensors["positional_embedding_res"]
        x = x + (first * is_first)[: len(x)] + (later * (1 - is_first))[: len(x)]
    else:
        x = x + tensors["positional_embedding"][: len(x)]
    mask = torch.full((len(x), len(x)), float("-inf"), dtype=x.dtype).triu(1)
    x = _blocks(tensors, "transformer.resblocks", x, 64, act, mask=mask)
    return _norm(tensors, "ln_final", x[int(np.argmax(tokens))]) @ tensors["text_projection"]


def _blocks(tensors, prefix, x, head_width, act, *, mask):
    for layer in range(2):
        own = {key.removeprefix(f"{prefix}.{layer}."): value for key, value in tensors.items()}
        attention = nn.MultiheadAttention(x.shape[-1], x.shape[-1] // head_width).to(x.dtype)
        attention.load_state_dict({key[5:]: value for key, value in own.items() if key.startswith("attn.")})
        y = _norm(own, "ln_1", x)
        x = x + attention(y, y, y, need_weights=False, attn_mask=mask)[0]
        y = F.linear(_norm(own, "ln_2", x), own["mlp.c_fc.weight"], own["mlp.c_fc.bias"])
        y = y * torch.sigmoid(1.702 * y) if act == "quick_gelu" else F.gelu(y)
        x = x + F.linear(y, own["mlp.c_proj.weight"], own["mlp.c_proj.bias"])
    return x.detach()


def _norm(tensors, name, x):
    return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-5)


def pictures(count=4, size=(SIDE, SIDE), seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(count)]


def by_hand(image):
    """Normalised pixels (3, SIDE, SIDE): the short side scaled, the middle cut out."""
    scale = SIDE / min(image.size)
    image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    levels = np.asarray(image, np.float64)[top : top + SIDE, left : left + SIDE] / 255
    return torch.from_numpy((levels - MEAN) / STD).permute(2, 0, 1).float()


def difficult_pictures():
    """Pictures that a scorer must bear: tiny, long, palette, CMYK, 16 bits, transparent; and one of broken data."""
    import io

    data = io.BytesIO()
    pictures(size=(64, 64))[0].save(data, "PNG")
    broken = Image.open(io.BytesIO(data.getvalue()[:2000]))
    good = pictures(size=(40, 20))[0]
    deep = Image.fromarray(np.arange(0, 60000, 60, dtype=np.uint16).reshape(20, 50))
    modes = [good.convert("P"), good.convert("CMYK"), good.convert("RGBA"), good.convert("L")]
    return [Image.new("RGB", (1, 1), "red"), Image.new("RGB", (3, 90)), deep, *modes], broken
