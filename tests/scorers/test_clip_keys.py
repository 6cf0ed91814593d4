"""Every layout becomes the same transformers model; what is missing or has no place is named."""

import pytest
import torch
from transformers import CLIPModel

from conftest import FLOAT32
from realgen.core.errors import ModelError
from realgen.scorers._clip_keys import KEPT_POSITIONS, config_of, translate
from realgen.scorers._weights import fill
from tiny_clip import openai_tensors, random_clip, text_embedding

MODEL = random_clip()


def filled(state):
    """transformers' model, its sizes and weights those of translated tensors."""
    return fill(lambda: CLIPModel(config_of(state, source="x")), state, source="x", machine=FLOAT32)


def test_openai_names_become_transformers_names_with_equal_tensors():
    translated = translate(openai_tensors(MODEL), source="x")
    wanted = MODEL.state_dict()
    assert translated.keys() == wanted.keys()
    assert all(torch.equal(translated[key], wanted[key]) for key in wanted)


def test_transformers_names_stay_and_buffers_of_old_releases_are_left_out():
    given = {**MODEL.state_dict(), "text_model.embeddings.position_ids": torch.arange(16)[None]}
    assert translate(given, source="x").keys() == MODEL.state_dict().keys()


@pytest.mark.parametrize("scalar", ["input_resolution", "context_length", "vocab_size", "attn_mask"])
def test_what_is_no_weight_is_left_out(scalar):
    given = {**openai_tensors(MODEL), scalar: torch.tensor(7)}
    assert scalar not in translate(given, source="x")


@pytest.mark.parametrize("head_width", [32, 64])
def test_sizes_are_read_from_shapes(head_width):
    model = random_clip(head_width=head_width, act="gelu", positions=19)
    state = translate(openai_tensors(model), source="x")
    config = config_of(state, source="x", activation="gelu", vision_head_width=head_width)
    for tower in ("text_config", "vision_config"):
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"):
            assert getattr(getattr(config, tower), name) == getattr(getattr(model.config, tower), name), (tower, name)
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (32, 8)
    assert (config.text_config.vocab_size, config.text_config.max_position_embeddings) == (514, 19)
    assert (config.text_config.eos_token_id, config.projection_dim) == (513, 24)


def test_long_clip_reads_its_first_positions_from_one_table_and_the_others_from_the_second():
    tensors = openai_tensors(random_clip(positions=48))
    tensors["positional_embedding_res"] = torch.randn(48, 64, generator=torch.Generator().manual_seed(1))
    table = translate(tensors, source="x")["text_model.embeddings.position_embedding.weight"]
    assert KEPT_POSITIONS == 20
    assert torch.equal(table[:20], tensors["positional_embedding"][:20])
    assert torch.equal(table[20:], tensors["positional_embedding_res"][20:])


@pytest.mark.parametrize("length", [5, 20, 21, 48])
def test_long_clips_text_embedding_is_that_of_two_masked_tables(length):
    tensors = openai_tensors(random_clip(positions=48))
    tensors["positional_embedding_res"] = torch.randn(48, 64, generator=torch.Generator().manual_seed(1))
    state = translate(tensors, source="x")
    model = filled(state)
    tokens = [512, *torch.randint(0, 512, (length - 2,), generator=torch.Generator().manual_seed(2)).tolist(), 513]
    found = model.text_projection(model.text_model(input_ids=torch.tensor([tokens])).pooler_output)[0]
    assert torch.allclose(found, text_embedding(tensors, tokens), atol=1e-5)
    one_table = {key: value for key, value in tensors.items() if key != "positional_embedding_res"}
    assert torch.allclose(found, text_embedding(one_table, tokens), atol=1e-5) == (length <= KEPT_POSITIONS)


def test_two_tables_of_different_shapes_are_refused():
    tensors = {**openai_tensors(MODEL), "positional_embedding_res": torch.zeros(17, 64)}
    with pytest.raises(ModelError, match="two tables"):
        translate(tensors, source="x")


def test_something_else_is_no_clip():
    with pytest.raises(ModelError, match=r"x is no CLIP checkpoint: it holds fc\.weight"):
        translate({"fc.weight": torch.zeros(2)}, source="x")


@pytest.mark.parametrize(
    ("missing", "name"),
    [
        ("visual.ln_post.bias", "vision_model.post_layernorm.bias"),
        ("logit_scale", "logit_scale"),
        ("transformer.resblocks.1.mlp.c_fc.weight", "text_model.encoder.layers.1.mlp.fc1.weight"),
        ("visual.transformer.resblocks.0.attn.in_proj_bias", "vision_model.encoder.layers.0.self_attn.k_proj.bias"),
    ],
)
def test_a_missing_tensor_is_named(missing, name):
    tensors = openai_tensors(MODEL)
    del tensors[missing]
    state = translate(tensors, source="x")
    with pytest.raises(ModelError, match=f"x lacks {name}"):
        filled(state)


@pytest.mark.parametrize("missing", ["token_embedding.weight", "visual.positional_embedding", "text_projection"])
def test_a_missing_tensor_that_tells_a_size_is_named(missing):
    tensors = openai_tensors(MODEL)
    del tensors[missing]
    with pytest.raises(ModelError, match=r"x lacks .*(token_embedding|position_embedding|text_projection)"):
        config_of(translate(tensors, source="x"), source="x")


def test_a_tensor_without_a_place_is_named():
    state = translate({**openai_tensors(MODEL), "visual.extra": torch.zeros(2)}, source="x")
    with pytest.raises(ModelError, match=r"x holds visual\.extra, which this model has no place for"):
        filled(state)


def test_a_head_width_that_does_not_fit_is_refused():
    state = translate(openai_tensors(MODEL), source="x")
    with pytest.raises(ModelError, match="vision tower is 128 wide, no multiple of 80") as caught:
        config_of(state, source="x", vision_head_width=80)
    assert "vision_head_width" in caught.value.hint
