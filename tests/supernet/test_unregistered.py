"""Parameters that torch does not register."""

import torch
from torch import nn

from nas.supernet.unregistered import unregistered_parameters
from nas.training.job import taking


class Holding(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.seen = [self.layer, self.layer.weight]  # registered as well
        self.teachers = {"frozen": nn.Linear(2, 2).requires_grad_(False)}
        self.heads = {"a": [nn.Linear(2, 2)]}
        self.scales = (nn.Parameter(torch.ones(2)),)

    def forward(self, x):
        return self.heads["a"][0](self.layer(x)) * self.scales[0]


def test_parameters_in_plain_containers_are_named(capsys):
    model = nn.Sequential(Holding())
    assert list(unregistered_parameters(model)) == ["0.heads['a'][0]", "0.scales[0]"]
    with taking(model, torch.ones(1, 2)):
        model(torch.ones(1, 2))
    told = capsys.readouterr().err
    assert told.startswith("warning: 0.heads['a'][0] of the model holds parameters that torch does not register, so")
    assert told.count("\n") == 1
