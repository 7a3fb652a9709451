"""Search and retraining never read the test split, and give the same results for any test split."""

import json
from dataclasses import replace

import pytest
import torch
from cli.conftest import TINY

from nas.cli import run
from nas.cli.stages.retrain import RetrainStage
from nas.data.split import TensorSplit
from nas.data.synthetic import Synthetic

# All that a search and a retraining can do with data beside their steps.
EVERYTHING = (
    *TINY, "tracker=jsonl", "deriver=best_of", "deriver.samples=2", "searcher=second_order", "sampler=softmax",
    "search.gap_batches=1", "retrain.average=0.9", "retrain.mixup=0.2", "retrain.label_smoothing=0.1",
)  # fmt: skip
TIMES = ("seconds_per_step", "examples_per_second")


class Locked(TensorSplit):
    """A split that cannot be read before training is over."""

    locked = True

    def batches(self, order, *, device):
        assert not Locked.locked, "the test split was read"
        return super().batches(order, device=device)

    def subset(self, indices):
        raise AssertionError("a part of the test split was taken")


def test_nothing_is_learnt_from_the_test_split_nor_does_a_stage_read_it(tmp_path, monkeypatch):
    load, retrain = Synthetic.load, RetrainStage.run

    def then_unlock(self, *arguments, **supernet):
        trained = retrain(self, *arguments, **supernet)
        Locked.locked = False
        return trained

    def outcome(pixel):
        """What was learnt, logged and scored beside a test split of images of one value."""

        def locked(self):
            bundle = load(self)
            images = torch.full((6, *bundle.spec.input_shape), pixel, dtype=torch.uint8)
            return replace(bundle, test=Locked(images, torch.arange(6) % 3))

        monkeypatch.setattr(Locked, "locked", True)
        monkeypatch.setattr(Synthetic, "load", locked)
        monkeypatch.setattr(RetrainStage, "run", then_unlock)
        directory = tmp_path / str(pixel)
        monkeypatch.setattr("sys.argv", ["nas-run", *EVERYTHING, f"hydra.run.dir={directory}"])
        run.main()
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        return (
            torch.load(directory / "retrain" / "checkpoint.pt", weights_only=True)["network"],
            [{name: value for name, value in line.items() if name not in TIMES} for line in lines],
            json.loads((directory / "result.json").read_text())["test_loss"],
        )

    (dark, dark_log, dark_loss), (bright, bright_log, bright_loss) = outcome(0), outcome(255)
    assert dark_log == bright_log
    assert dark.keys() == bright.keys()
    assert all(torch.equal(dark[name], bright[name]) for name in dark)
    assert dark_loss != bright_loss  # the only place where it matters


def test_the_lock_holds():
    split = Locked(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(AssertionError, match="the test split was read"):
        split.batches([torch.arange(1)], device=torch.device("cpu"))
