"""A space with group norms.

Nothing in it depends on batch statistics, so several processes, each with a share of every batch, train the same as
one.
"""

import os
import signal

import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from nas.spaces.cell import DropPath
from nas.supernet.choice import Choice

WIDTH = 8


def conv(c_in, kernel_size, batch_norm):
    return nn.Sequential(
        nn.Conv2d(c_in, WIDTH, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(WIDTH) if batch_norm else nn.GroupNorm(2, WIDTH),
    )


class GroupNorms(nn.Module):
    """batch_norm: use batch norms instead, for comparison."""

    def __init__(self, in_channels, num_classes, batch_norm=False):
        super().__init__()
        self.stem = conv(in_channels, 3, batch_norm)
        self.blocks = nn.ModuleList(
            Choice(
                {
                    "3x3": conv(WIDTH, 3, batch_norm),
                    "1x1": conv(WIDTH, 1, batch_norm),
                    "pool": nn.AvgPool2d(3, 1, 1),
                    "skip": nn.Identity(),
                }
            )
            for _ in range(2)
        )
        self.drop_path = DropPath()
        self.head = nn.Linear(WIDTH, num_classes)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            # Smooth: with a ReLU, another rounding of a number near 0 would change the gradient.
            x = x + self.drop_path(F.silu(block(x)))
        return self.head(x.mean((2, 3)))


class FailsInTheSecond(GroupNorms):
    """Raises an error in the second of two processes, in the middle of a training."""

    def forward(self, x):
        if self.training and dist.is_initialized() and dist.get_rank() == 1:
            raise RuntimeError("the second process is broken")
        return super().forward(x)


class StoppedInTheSecond(GroupNorms):
    """Sends a signal to the second of two processes, in the middle of an epoch."""

    forwards = 0

    def forward(self, x):
        if self.training and dist.is_initialized() and dist.get_rank() == 1:
            self.forwards += 1
            if self.forwards == 12:  # two per step: the second of the four steps of the second epoch
                os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(x)


class DiesOnce(GroupNorms):
    """Kills the second of two processes in its fifth step, unless the process has been started again."""

    forwards = 0

    def forward(self, x):
        self.forwards += self.training
        if self.forwards == 9 and dist.get_rank() == 1 and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)
