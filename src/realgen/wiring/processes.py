"""The processes that torchrun started, as a World."""

import os
from typing import TYPE_CHECKING

from realgen.core.errors import ConfigError
from realgen.core.spec import Machine
from realgen.hub.device import pick_device

if TYPE_CHECKING:
    from realgen.train.world import World


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

    state = PartialState(cpu=pick_device(machine).type == "cpu")
    if state.num_processes != size:
        raise ConfigError(f"{size} processes were started, and {state.num_processes} met", hint="use torchrun")
    return World(state.process_index, size, is_sharded=machine.shard)
