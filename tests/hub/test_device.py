import pytest
import torch

from realgen.core.errors import ConfigError
from realgen.core.spec import Machine
from realgen.hub.device import keep_gradients_right, pick_device, pick_dtype


def test_what_is_asked_for_is_taken() -> None:
    device = pick_device(Machine(device="cpu"))
    assert device == torch.device("cpu")
    assert pick_dtype(Machine(dtype="float32"), device) is torch.float32
    assert pick_dtype(Machine(dtype="float16"), device) is torch.float16


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bfloat16_only_where_the_cpu_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("realgen.hub.device._cpu_has_bfloat16", lambda: has_bf16)
    assert pick_dtype(Machine(), torch.device("cpu")) is dtype
    assert pick_dtype(Machine(), torch.device("mps")) is torch.float32
    assert pick_dtype(Machine(), torch.device("cuda")) is torch.bfloat16


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device=cuda"):
        pick_device(Machine(device="cuda"))


@pytest.mark.parametrize(("device", "allowed"), [("cuda", False), ("cpu", True)])
def test_on_cuda_attention_is_not_cudnn_s_whose_gradients_are_wrong(device: str, allowed: bool) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        keep_gradients_right(torch.device(device))
        assert torch.backends.cuda.cudnn_sdp_enabled() is allowed
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
