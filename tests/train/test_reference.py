import pytest
import torch
from torch import nn

from realgen.train.reference import frozen_copy


def test_a_frozen_copy_changes_places_and_back_whatever_happens():
    module = nn.Linear(1, 1)
    module.bias.requires_grad_(False)
    before = module.weight.detach().clone()
    reference = frozen_copy(module)
    with torch.no_grad():
        module.weight.add_(1)
    with reference():
        assert torch.equal(module.weight, before)
    assert torch.equal(module.weight, before + 1)
    with pytest.raises(ZeroDivisionError), reference():
        raise ZeroDivisionError
    assert torch.equal(module.weight, before + 1)
    with reference():
        assert torch.equal(module.weight, before), "it can be used again"
