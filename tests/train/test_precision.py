import pytest
import torch

from realgen.train.precision import computing_in


@pytest.mark.parametrize(("dtype", "product"), [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_products_are_in_the_number_format_and_weights_stay(dtype, product):
    weight = torch.ones(2, 2)
    with computing_in(dtype, torch.device("cpu")):
        assert (weight @ weight).dtype == product
    assert weight.dtype == (weight @ weight).dtype == torch.float32


def test_an_update_is_seen_within_the_block():
    layer, x = torch.nn.Linear(4, 4, bias=False), torch.ones(2, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with computing_in(torch.bfloat16, torch.device("cpu")):
        before = layer(x)
        before.float().sum().backward()
        optimizer.step()
        after = layer(x)
    assert before.dtype is torch.bfloat16
    assert not torch.equal(before, after)
