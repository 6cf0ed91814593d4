import pytest
import torch

from realgen.train.precision import computing_in


@pytest.mark.parametrize(("dtype", "product"), [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_products_are_in_the_number_format_and_weights_stay(dtype, product):
    weight = torch.ones(2, 2)
    with computing_in(dtype, torch.device("cpu")):
        assert (weight @ weight).dtype == product
    assert weight.dtype == (weight @ weight).dtype == torch.float32
