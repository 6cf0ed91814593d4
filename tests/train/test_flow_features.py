"""What a frozen flow sees: after which blocks, of which tokens, differentiable, and no further than asked."""

import pytest
import torch

from realgen.train.flow_features import FlowFeatures
from train.test_adversarial import backbone_of


def blocks_of(backbone):
    return [*backbone.module.transformer_blocks, *backbone.module.single_transformer_blocks]


@pytest.fixture
def backbone(random_flux):
    return backbone_of(random_flux, trains=True)


def see(backbone, chosen, latents, size=(32, 32)):
    return FlowFeatures(backbone, [blocks_of(backbone)[place] for place in chosen], size=size)(
        latents, torch.tensor([0.3, 0.6]), backbone.encode(["a rose", "a cat"])
    )


def test_maps_are_the_image_tokens_after_the_chosen_blocks(backbone):
    kept = []
    for block in blocks_of(backbone)[:2]:
        block.register_forward_hook(lambda module, given, returned: kept.append(returned[-1][:, -4:]))
    maps = see(backbone, [0, 1], torch.randn(2, 4, 16))
    assert [one.shape for one in maps] == [(2, backbone.module.inner_dim, 2, 2)] * 2
    for one, states in zip(maps, kept, strict=True):
        normalised = torch.nn.functional.layer_norm(states, states.shape[2:])
        torch.testing.assert_close(one[:, :, 1, 0], normalised[:, 2])


def test_blocks_after_the_last_do_not_run(backbone):
    ran = []
    for place, block in enumerate(blocks_of(backbone)):
        block.register_forward_pre_hook(lambda module, given, place=place: ran.append(place))
    see(backbone, [0], torch.randn(2, 4, 16))
    assert ran == [0]


def test_gradients_reach_the_latents_and_no_weights(backbone):
    latents = torch.randn(2, 4, 16, requires_grad=True)
    see(backbone, [0, 1], latents)[1].square().sum().backward()
    assert latents.grad.abs().min() > 0
    assert all(one.grad is None for one in backbone.module.parameters())


def test_each_call_sees_anew(backbone):
    features = FlowFeatures(backbone, blocks_of(backbone)[:2], size=(32, 32))
    latents, condition = torch.randn(2, 4, 16), backbone.encode(["a rose", "a cat"])
    first, second = (features(latents, torch.tensor([0.3, 0.6]), condition) for _ in range(2))
    assert len(first) == len(second) == 2
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_the_backbone_serves_others_between_two_calls(backbone):
    latents, condition, sigma = torch.randn(2, 4, 16), backbone.encode(["a rose", "a cat"]), torch.tensor([0.3, 0.6])

    def answer():
        with torch.no_grad():
            return backbone.velocity(latents, sigma, condition, guidance=1.0, size=(32, 32))

    backbone.module.eval()
    before = answer()
    see(backbone, [0], latents)
    assert torch.equal(answer(), before)
