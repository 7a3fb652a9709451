"""Searching, retraining and exporting networks that have weights."""

import copy
import json

import pytest
import torch
from custom_models import residual
from torch import nn

import nas
from nas.adapt import narrower, skip
from nas.errors import ConfigError, GenotypeError, SpaceError
from nas.formats.export_trained import on_cpu
from nas.supernet.copying import copied
from nas.training.hooks import Hook

RUN = {"epochs": 1, "batch_size": 8, "device": "cpu", "progress": False}
SEARCH = RUN | {"gap_batches": 0}


def images(count=48):
    labels = torch.arange(count) % 2
    pixels = torch.randint(256, (count, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels[labels == 1] //= 3
    return pixels, labels


def trained(steps=15):
    """A network that was trained for a few steps, in eval mode."""
    torch.manual_seed(0)
    model, (pixels, labels) = residual(), images()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    mean, std = (pixels / 255).mean(), (pixels / 255).std()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model((pixels / 255 - mean) / std), labels).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def original():
    return trained()


def inserted(model, makers=None):
    makers = [skip(), narrower(0.5, multiple_of=1)] if makers is None else makers
    return nas.insert(copy.deepcopy(model), {"[12]": makers}, example=images()[0][:2].float())


def stopped_before_a_step(call, **arguments):
    """The weights of the network that a call is to train, as they are before its first step."""
    seen = {}

    class Stop(Hook):
        def after_step(self, state):
            model = state.supernet if hasattr(state, "supernet") else state.network
            seen.update({name: weight.detach().clone() for name, weight in model.named_parameters()})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(hooks=[Stop()], **arguments)
    return seen


# Steps that move nothing, so that what is seen after a step is what was there before.
STILL = {"lr": nas.training.Constant(0.0)}


def test_a_search_and_a_retraining_start_from_the_weights_that_the_model_has(original):
    model = inserted(original)
    seen = stopped_before_a_step(lambda **given: nas.search(model, images(), **given), **SEARCH, **STILL)
    assert all(torch.equal(weight, seen[name]) for name, weight in model.named_parameters())
    chosen = nas.Genotype("custom", {"1": "skip", "2": "width_0.5"})
    seen = stopped_before_a_step(lambda **given: nas.retrain(model, chosen, images(), **given), **RUN, **STILL)
    narrow = dict(model[2].candidates[2].named_parameters())
    assert narrow["conv1.weight"].shape == (4, 8, 3, 3)
    assert all(torch.equal(weight, seen[f"2.{name}"]) for name, weight in narrow.items())
    assert torch.equal(seen["0.weight"], original[0].weight)


def test_a_retraining_that_starts_from_the_supernet(original, tmp_path):
    """The derived network gives the supernet's outputs to the bit; a retraining that is stopped goes on to the bit."""
    model, data = inserted(original), images()
    found = nas.search(model, data, directory=tmp_path / "search", tracker=nas.storage.JsonLines, **SEARCH)
    seen = stopped_before_a_step(
        lambda **given: nas.retrain(model, found, data, start="supernet", **given), **RUN, **STILL
    )
    chosen = {name: weight for name, weight in found.supernet.state.items() if name in ("0.weight", "5.bias")}
    assert all(torch.equal(weight, seen[name]) for name, weight in chosen.items())
    assert not torch.equal(seen["0.weight"], original[0].weight)  # as the search has trained it
    settings = RUN | {"epochs": 2, "tracker": nas.storage.JsonLines, "start": "supernet"}
    whole = nas.retrain(model, found, data, test=data, directory=tmp_path / "whole", **settings)
    assert whole.result["retrain_start"] == "supernet"

    class Stop(Hook):
        def after_step(self, state):
            if state.epoch == 1:
                raise RuntimeError("stopped")

    path = tmp_path / "search" / "genotype.json"
    with pytest.raises(RuntimeError, match="stopped"):
        nas.retrain(model, str(path), data, directory=tmp_path / "part", hooks=[Stop()], **settings)
    (tmp_path / "search" / "search" / "checkpoint.pt").unlink()  # needed no longer
    rest = nas.retrain(model, str(path), data, directory=tmp_path / "part", resume=True, **settings)
    assert json.loads((tmp_path / "part" / "manifest.json").read_text())["retrain_start"] == "supernet"
    for (name, one), other in zip(whole.network.state_dict().items(), rest.network.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    with pytest.raises(
        ConfigError, match=r"^start=supernet takes the weights from .*checkpoint.pt, which does not exist"
    ):
        nas.retrain(model, str(path), data, directory=tmp_path / "new", **settings)
    with pytest.raises(ConfigError, match=r"^start=supernet takes the weights of a search, got a genotype alone; give"):
        nas.retrain(model, found.genotype, data, **settings)
    with pytest.raises(ConfigError, match=r"^start must be one of scratch, supernet, got 'warm'; set start=scratch"):
        nas.retrain(model, found, data, **settings | {"start": "warm"})


def test_why_a_model_that_was_changed_cannot_be_built_from_files(original, tmp_path, monkeypatch):
    net = nas.retrain(inserted(original), nas.Genotype("custom", {"1": "keep", "2": "skip"}), images(), **RUN)
    # Without the fresh process.
    monkeypatch.setattr("nas.formats.export.compared", lambda _, made, __: {one.file: 0.0 for one in made})
    exported = nas.export(net, tmp_path / "out", formats=["weights", "standalone"])
    assert {"model.py", "weights.safetensors"} <= {path.name for path in exported.paths}
    # What the class alone makes has no choices, so this project cannot build the network again.
    reason = "torch.nn.modules.container.Sequential alone does not make the model (Sequential contains no Choice"
    assert exported.left_out["weights"].startswith(reason)


def test_frozen_weights_stay_and_all_frozen_is_refused(original):
    model = copy.deepcopy(original).requires_grad_(False)
    with pytest.raises(SpaceError, match=r"^all weights of the supernet are frozen .*, so nothing can learn; let some"):
        nas.search(inserted(model), images(), **SEARCH)
    # Only the copy of the last layer learns: a path without it moves nothing.
    places = {"5": nas.adapt.other("free", lambda layer: layer.requires_grad_(True)), "[12]": skip()}
    partly = nas.insert(model, places, example=images()[0][:2].float())
    before = {name: weight.clone() for name, weight in partly.named_parameters() if not weight.requires_grad}
    moved = {}

    class After(Hook):
        def after_epoch(self, state):
            moved.update({n: w.detach().clone() for n, w in state.supernet.named_parameters()})

    nas.search(partly, images(), hooks=[After()], **SEARCH | {"epochs": 2})
    assert all(torch.equal(moved[name], weight) for name, weight in before.items())
    assert any(not torch.equal(moved[name], w) for name, w in partly.named_parameters() if name not in before)
    with pytest.raises(SpaceError, match="all weights of the derived network are frozen"):
        nas.retrain(partly, nas.Genotype("custom", {"1": "keep", "2": "keep", "5": "keep"}), images(), **RUN)


def test_a_model_without_choices_is_trained_further(original):
    """None is its genotype; what a retraining returned is trained further as it is."""
    seen = stopped_before_a_step(lambda **given: nas.retrain(original, None, images(), **given), **RUN, **STILL)
    assert all(torch.equal(weight, seen[name]) for name, weight in original.named_parameters())
    net = nas.retrain(inserted(original), nas.Genotype("custom", {"1": "keep", "2": "skip"}), images(), **RUN)
    again = nas.retrain(net, None, images(), test=images(), **RUN)
    assert again.result["parameters"] == sum(weight.numel() for weight in net.network.parameters())
    assert not torch.equal(again.network[0].weight, net.network[0].weight)
    assert "tensor(" not in repr(again)  # no pixels of training images


@pytest.mark.parametrize(
    ("model", "genotype", "start", "message"),
    [
        (
            inserted,
            None,
            "scratch",
            r"^genotype is None, but the model has 2 choices, e\.g\. at 1; give what nas\.search",
        ),
        (
            copy.copy,
            nas.Genotype("custom", {"1": "skip"}),
            "scratch",
            r"^the genotype chooses at 1, but the model has no",
        ),
        (copy.copy, None, "supernet", r"^start=supernet takes the weights of a search, got no genotype; give"),
        (inserted, (), "scratch", r"^genotype is a tuple, expected what nas\.search returned, a genotype, or its name"),
    ],
)
def test_a_genotype_of_another_model_is_one_line(original, model, genotype, start, message):
    with pytest.raises((ConfigError, GenotypeError), match=message):
        nas.retrain(model(original), genotype, images(), start=start, **RUN)


class Remembering(nn.Module):
    """Keeps a tensor of its last forward pass, as for a picture of the attention."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        self.seen = {"map": [self.conv(x)]}
        return self.head(self.seen["map"][0].mean((2, 3)))


def test_a_model_that_keeps_tensors_of_its_last_pass_is_copied():
    model, x = Remembering(), torch.randn(2, 1, 6, 6)
    model(x)
    copy = copied(model)
    assert copy.conv.weight is not model.conv.weight
    assert torch.equal(copy.seen["map"][0], model.seen["map"][0])
    net = nas.retrain(model, None, images(), teacher=model, average=0.5, **RUN)
    net.network(x)
    # In another memory format, in which a convolution may round in another way.
    torch.testing.assert_close(on_cpu(net.network)(x), net.network(x))
