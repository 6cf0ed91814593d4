"""One of several processes that take two optimiser steps; run by torchrun from test_world.py.

FOLDER OUT plain|sharded: the model, where the main process writes gradients and figures, and how weights are kept.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import distributed

import grpo
from realgen.train.world import World, whole


def take_steps(folder, out, *, world):
    torch.set_num_threads(1)
    recipe = grpo.recipe_of(num_prompts=2, group=4, kl_weight=0.1, inner_epochs=2)
    generator = grpo.load_generator(folder, recipe)
    generator.backbone.remember(grpo.PROMPTS)
    trainer = grpo.trainer_of(generator, recipe, world=world)
    figures = [trainer.step(0)]
    gradients = {}
    take = trainer.optimizer.step

    def keep_and_take():
        gradients.update({name: whole(value.grad).clone() for name, value in trainer.trained.items()})
        take()

    trainer.optimizer.step = keep_and_take
    figures.append(trainer.step(1))
    state = trainer.state_dict()
    if world.is_main:
        figures = [{name: value for name, value in one.items() if "seconds" not in name} for one in figures]
        torch.save({"gradients": gradients, "figures": figures, "state": state, "size": world.size}, out)


def main():
    folder, out, how = sys.argv[1:]
    distributed.init_process_group("gloo")
    world = World(distributed.get_rank(), distributed.get_world_size(), is_sharded=how == "sharded")
    take_steps(Path(folder), Path(out), world=world)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
