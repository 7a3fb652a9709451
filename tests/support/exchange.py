"""Exchanges data between two processes, with assertions in each process. A script that test_distributed.py starts."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from nas.cli import torchrun
from nas.errors import ConfigError, DivergenceError
from nas.runtime import distributed
from nas.runtime.buffers import of_processes
from nas.runtime.precision import Precision, take_step
from nas.training.meter import Meter, StepResult


def main(directory):
    with distributed.joined():
        rank = int(os.environ["RANK"])
        assert distributed.world() == 2
        assert distributed.share() == distributed.Share(rank, 2)
        assert distributed.first() == (rank == 0)
        assert distributed.agreed(f"of {rank}") == "of 0"

        # Tensors of several types and layouts, in several buckets; those that are passed stay as they are.
        distributed.BUCKET = 50
        mine = [
            torch.full((2, 4, 3, 3), rank + 1.0).contiguous(memory_format=torch.channels_last),
            torch.full((60,), 3.0 * rank),
            torch.full((), 5.0 + rank, dtype=torch.float64),
            torch.full((3,), -1.0 - rank),
        ]
        found = distributed.means(mine)
        assert [mean.unique().tolist() for mean in found] == [[1.5], [1.5], [5.5], [-1.5]]
        assert [mean.dtype for mean in found] == [tensor.dtype for tensor in mine]
        assert [mean.shape for mean in found] == [tensor.shape for tensor in mine]
        assert mine[1].unique().tolist() == [3.0 * rank]
        assert distributed.means([]) == []
        assert distributed.averaged([rank, 10.0]) == [0.5, 10.0]

        # A step of weight decay: operations that were not drawn must not change.
        drawn, undrawn = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        (drawn * (rank + 1)).sum().backward()
        optimizer = torch.optim.SGD([undrawn, drawn], lr=0.1, weight_decay=1.0)
        assert take_step(optimizer, Precision().scaler()).norm.item() == pytest.approx(1.5 * 3**0.5)
        assert drawn.tolist() == pytest.approx([1 - 0.1 * (1.5 + 1)] * 3)
        assert undrawn.tolist() == [1.0] * 3

        # A mean over examples: the first process measures losses 1 and 2, the second 11 and 12.
        meter = Meter("accuracy")
        for loss in (1.0, 2.0):
            meter.add(StepResult(torch.tensor(loss + 10 * rank), torch.tensor(2 + rank), 4, torch.tensor(3.0)))
        assert meter.examples == 16
        assert meter.summary("w") == {"w/loss": 6.5, "w/accuracy": 10 / 16, "w/grad_norm": 3.0}

        torch.manual_seed(rank)
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
        model[1].num_batches_tracked += 7 - rank
        model.register_buffer("steps", torch.full((2, 3), 4 - rank, dtype=torch.int16).t())
        distributed.start_alike(model)
        torch.manual_seed(0)
        expected = nn.Conv2d(3, 4, 1)
        assert torch.equal(model[0].weight, expected.weight)
        assert model[1].num_batches_tracked == 7
        assert model.steps.unique().tolist() == [4]

        model[1].running_mean.fill_(rank)
        apart = of_processes(model)
        assert [{name: one.tolist() for name, one in own.items()} for own in apart] == [
            {"1.running_mean": [float(number)] * 4} for number in range(2)
        ]

        logits, generator = torch.tensor([0.1, 0.2]), torch.Generator().manual_seed(3)
        distributed.check_equal_gates([logits, generator.get_state()])
        for different in (
            [logits.nextafter(torch.tensor(float(rank))), generator.get_state()],
            [logits, torch.Generator().manual_seed(rank).get_state()],
        ):
            with pytest.raises(DivergenceError, match="the 2 processes no longer draw the same gates"):
                distributed.check_equal_gates(different)

        distributed.check_same({"seed": 1, "size": None})
        with pytest.raises(ConfigError, match=r"the 2 processes differ in size, got \(0, 2\) and \(1, 2\), exp"):
            distributed.check_same({"seed": 1, "size": (rank, 2)})

        downloaded = directory / "downloaded"
        with distributed.first_on_machine_first():
            if rank == 0:
                time.sleep(0.3)
                downloaded.touch()
            assert downloaded.exists()

        firsts = distributed.averaged([distributed.first_to("speak"), distributed.first_to("write")])
        assert firsts == [0.5, 0.5]
        (directory / f"done {rank}").touch()


if __name__ == "__main__":
    with torchrun.left_at_once():
        main(Path(sys.argv[1]))
