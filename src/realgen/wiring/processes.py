"""The processes that torchrun started, as a World."""

import os
from datetime import timedelta
from typing import TYPE_CHECKING

from realgen.core.errors import ConfigError
from realgen.core.spec import Machine
from realgen.hub.device import pick_device

if TYPE_CHECKING:
    from realgen.train.world import World


def check_alone(machine: Machine, kind: str) -> None:
    """Raise ConfigError where several processes were started, or asked for, to train what one does."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or (machine.processes or 1) > 1 or machine.shard:
        raise ConfigError(f"kind: {kind} trains in one process", hint="start it without torchrun and machine.shard")


def join(machine: Machine) -> "World":
    """The processes that torchrun started; ConfigError where they are not as many as the machine says."""
    from realgen.train.world import World

    size = int(os.environ.get("WORLD_SIZE", "1"))
    if machine.processes is not None and machine.processes != size:
        raise ConfigError(
            f"machine.processes={machine.processes}, and {size} is running",
            hint=f"torchrun --nproc-per-node {machine.processes} -m realgen.apps.cli train ...",
        )
    if size == 1:
        if machine.shard:
            raise ConfigError("machine.shard with one process: there is nobody to share with", hint="use torchrun")
        return World()
    from accelerate import PartialState
    from torch import distributed

    # a rank may wait for another's scorers, or for the main one's files, longer than the usual ten minutes
    state = PartialState(cpu=pick_device(machine).type == "cpu", timeout=timedelta(hours=2))
    if state.num_processes != size:
        raise ConfigError(f"{size} processes were started, and {state.num_processes} met", hint="use torchrun")
    talk = distributed.new_group(backend="gloo")  # what is not a tensor does not go through the GPUs
    return World(state.process_index, size, is_sharded=machine.shard, talk=talk)
