"""A deeper transformer answers as before, and its new blocks learn."""

import pytest
import torch
from diffusers import FluxTransformer2DModel

from realgen.core.errors import ConfigError
from realgen.train.growth import deepen


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=8,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 6, 6),
    )


def answer(transformer):
    generator = torch.Generator().manual_seed(1)
    return transformer(
        hidden_states=torch.randn(2, 4, 8, generator=generator),
        timestep=torch.tensor([0.3, 0.9]),
        pooled_projections=torch.randn(2, 10, generator=generator),
        encoder_hidden_states=torch.randn(2, 3, 12, generator=generator),
        txt_ids=torch.zeros(3, 3),
        img_ids=torch.zeros(4, 3),
        return_dict=False,
    )[0]


@pytest.mark.parametrize("count", [2, 3, 5, 9])
def test_it_answers_as_before_and_its_config_says_how_deep_it_is(transformer, count, tmp_path):
    before = answer(transformer)
    deepen(transformer, count)
    assert len(transformer.single_transformer_blocks) == transformer.config.num_single_layers == count
    assert torch.equal(answer(transformer), before)
    transformer.save_pretrained(tmp_path)
    assert torch.equal(answer(FluxTransformer2DModel.from_pretrained(tmp_path)), before)


def test_new_blocks_are_spread_and_the_old_ones_keep_their_order(transformer):
    first, second = transformer.single_transformer_blocks
    deepen(transformer, 5)
    places = [i for i, block in enumerate(transformer.single_transformer_blocks) if block in (first, second)]
    assert places == [0, 2]
    assert transformer.single_transformer_blocks[0] is first


def test_a_new_block_learns_at_once(transformer):
    deepen(transformer, 3)
    (new,) = (b for b in transformer.single_transformer_blocks if not b.proj_out.weight.any())
    answer(transformer).square().sum().backward()
    assert new.proj_out.weight.grad.any()


def test_blocks_are_not_taken_away(transformer):
    with pytest.raises(ConfigError, match="the transformer has 2"):
        deepen(transformer, 1)
