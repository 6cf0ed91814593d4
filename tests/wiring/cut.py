"""A run that was cut after one step and resumed, against the uncut one."""

from realgen.train.run import Run
from realgen.wiring import training


def assert_resumed_as_uncut(recipe, cut, whole):
    """What a run in `cut` exports equals, byte for byte, what `whole` holds."""
    run = Run.create(cut, recipe.model_dump(mode="json"))
    trainer = training.build_trainer(recipe, run.folder)
    trainer.step(0)
    run.save(1, trainer.state_dict())
    list(training.train(training.recipe_of(run.folder, []), run.folder, resume=True))
    ours, theirs = (
        (folder / "model/transformer/diffusion_pytorch_model.safetensors").read_bytes() for folder in (cut, whole)
    )
    assert ours == theirs
