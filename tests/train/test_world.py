import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import grpo
from realgen.train.world import World, put, whole
from train import processes_step

SCRIPT = Path(__file__).with_name("processes_step.py")


def torchrun(*words, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run([*command, *map(str, words)], check=False, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def alone(random_flux, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "steps.pt"
    processes_step.take_steps(random_flux, out, world=World())
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("how", ["plain", "sharded"])
def test_two_processes_take_the_steps_of_one(random_flux, tmp_path, alone, how):
    out = tmp_path / "steps.pt"
    done = torchrun(SCRIPT, random_flux, out, how)
    assert done.returncode == 0, done.stderr[-3000:]
    together = torch.load(out, weights_only=True)
    assert (alone["size"], together["size"]) == (1, 2), "torchrun must start two"
    assert alone["gradients"].keys() == together["gradients"].keys()
    for name, one in alone["gradients"].items():
        other = together["gradients"][name]
        assert float((one - other).norm()) <= 1e-5 * float(one.norm()), name
    for one, other in zip(alone["figures"], together["figures"], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-7)


def test_a_run_goes_on_with_another_number_of_processes(random_flux, tmp_path, alone):
    out = tmp_path / "steps.pt"
    assert torchrun(SCRIPT, random_flux, out, "sharded").returncode == 0
    state = torch.load(out, weights_only=True)["state"]
    trainer = grpo.build_trainer(random_flux, grpo.recipe_of(num_prompts=2, group=4, kl_weight=0.1, inner_epochs=2))
    trainer.load_state_dict(state)
    for name, value in trainer.trained.items():
        assert torch.allclose(value, alone["state"]["parameters"][name], atol=1e-4)
    assert trainer.step(2)["grad_norm"] > 0


def test_one_process_needs_nobody():
    world = World()
    assert world.is_main
    assert world.gather([1, 2]) == [1, 2]
    assert world.total({"a": 1.0}) == {"a": 1.0}
    assert world.agree(True)
    assert world.loss_scale == 1


def test_plain_tensors_are_whole():
    tree = {"a": [torch.ones(2), (1, "x")]}
    assert whole(tree)["a"][1] == (1, "x")
    parameter = nn.Parameter(torch.zeros(2))
    put(parameter, torch.ones(2))
    assert parameter.tolist() == [1, 1]
