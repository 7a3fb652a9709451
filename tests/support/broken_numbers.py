"""A model in which numbers become non-finite at a chosen forward pass."""

import torch
from torch import nn

from nas.supernet.choice import Choice


class BrokenGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


class Broken(nn.Module):
    """what: ``loss`` or ``gradient``. passes: the forward passes of training that break, counted from 1.

    With ``score``, every forward pass outside of training breaks.
    """

    def __init__(self, in_channels, num_classes, what="loss", passes=()):
        super().__init__()
        self.what, self.passes = what, tuple(passes)
        self.done = [0]  # a list, as a number that a step changes is warned of
        self.stem = nn.Conv2d(in_channels, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.block = Choice({"conv": nn.Conv2d(4, 4, 1), "skip": nn.Identity()})
        self.head = nn.Linear(4, num_classes)
        self.register_buffer("centre", torch.zeros(4))

    def forward(self, x):
        self.done[0] += self.training
        breaks = self.what == "score" if not self.training else self.done[0] in self.passes
        x = self.stem(x)
        if breaks:
            x = x * torch.nan if self.what != "gradient" else BrokenGradient.apply(x)
        if self.training:
            self.centre = 0.9 * self.centre + 0.1 * x.detach().mean((0, 2, 3))  # another tensor
        return self.head(self.block(self.norm(x)).mean((2, 3)))
