"""State and export that trainers of one model share."""

import torch
from torch import nn

from realgen.train.single import SingleModelTrainer


class Line(nn.Linear):
    """A layer that can be saved as a model."""

    def save_pretrained(self, folder):
        torch.save(self.weight.detach(), folder / "weight.pt")


def trainer_of(value=0.0):
    model = Line(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(value)
    return SingleModelTrainer(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), ema_decay=0.5)


def test_what_is_exported_is_the_average_and_the_live_weights_stay(tmp_path):
    trainer = trainer_of()
    with torch.no_grad():
        trainer.model.weight.fill_(1)
    trainer.ema.update(trainer.model)
    trainer.export(tmp_path)
    assert torch.load(tmp_path / "weight.pt").item() == trainer.ema.shadow["weight"].item() != 1
    assert trainer.model.weight.item() == 1


def test_the_state_holds_model_optimiser_and_average():
    one, other = trainer_of(1.0), trainer_of(2.0)
    one.model(torch.ones(1, 1)).sum().backward()
    one._parts["optimizer"].step()
    one.ema.update(one.model)
    other.load_state_dict(one.state_dict())
    assert other.model.weight.item() == one.model.weight.item()
    assert other.ema.num_updates == 1
    assert torch.equal(other.ema.shadow["weight"], one.ema.shadow["weight"])
    momentum = [next(iter(trainer.state_dict()["optimizer"]["state"].values())) for trainer in (one, other)]
    assert torch.equal(momentum[0]["momentum_buffer"], momentum[1]["momentum_buffer"])
