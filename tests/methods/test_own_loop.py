"""The loop that nas/supernet/README.md shows for people who have one: the same bits as the loop of the framework."""

import copy
import re
from pathlib import Path

import torch
from torch import nn

import nas
from nas.methods.deriver import Argmax
from nas.methods.first_order import FirstOrder
from nas.methods.loop import Plan, search
from nas.methods.state import SearchState
from nas.supernet.choice import Gate, choices, gates
from nas.supernet.genotype import Genotype
from nas.training.schedule import Constant, Linear
from nas.training.task import Classification

TEXT = (Path(nas.__file__).parent / "supernet" / "README.md").read_text(encoding="utf-8")
CODE, SCORES = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
EPOCHS, STEPS = 3, 4


class Batches:
    """A loader whose epochs are all alike."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        inputs, targets = torch.randn(STEPS, 8, 5, generator=generator), torch.arange(STEPS * 8).view(STEPS, 8) % 3
        self.batches = list(zip(inputs, targets, strict=True))

    def __len__(self):
        return STEPS

    def epoch(self, epoch, *, start=0, wanted=None):
        yield from self.batches[start:]


def model():
    torch.manual_seed(0)

    def layer(activation):
        return nn.Sequential(nn.Linear(5, 5), activation, nn.BatchNorm1d(5, affine=False))

    chosen = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "none": nn.Identity()}
    mixed = [nas.Choice({name: layer(copy.deepcopy(one)) for name, one in chosen.items()}) for _ in range(2)]
    return nn.Sequential(*mixed, nn.Linear(5, 3))


def test_the_loop_of_the_readme_gives_the_bits_of_the_framework():
    assert len(CODE.splitlines()) < 32
    weight_batches, arch_batches = Batches(0), Batches(1)
    own = {
        "model": model(),
        "weight_batches": weight_batches.batches,
        "arch_batches": arch_batches.batches,
        "epochs": EPOCHS,
    }
    exec(CODE, own)

    supernet = model()
    arch = nas.ArchParams.from_model(supernet, init_std=1e-3, generator=torch.Generator().manual_seed(0))
    state = SearchState(
        supernet,
        arch,
        torch.optim.SGD(supernet.parameters(), lr=0.05, momentum=0.9),
        torch.optim.Adam(arch.parameters(), lr=0.01, betas=(0.5, 0.999)),
        generator=torch.Generator().manual_seed(1),
        sampler=nas.GDAS(),
        metric="accuracy",
    )
    searcher = FirstOrder(state, task=Classification(), grad_clip=0.0)
    genotype = search(
        state,
        searcher=searcher,
        weight_loader=weight_batches,
        arch_loader=arch_batches,
        plan=Plan(epochs=EPOCHS, temperature=Linear(10.0, 0.1), lr=Constant(0.05)),
        derive=lambda state, last: Genotype("mine", Argmax()(state.arch)),
    )
    assert torch.equal(own["arch"].logits, arch.logits)
    theirs = supernet.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in own["model"].state_dict().items())
    assert own["genotype"] == genotype
    network = nas.freeze(model(), genotype.choices)
    assert network(torch.zeros(2, 5)).shape == (2, 3)

    own["genotypes"] = [Genotype("mine", {"0": name, "1": name}) for name in ("relu", "tanh", "none")]
    exec(SCORES, own)
    found = choices(supernet)
    for one in own["genotypes"]:
        drawn = {key: Gate(None, found[key][0].names.index(name)) for key, name in one.choices.items()}
        with torch.no_grad(), gates(found, drawn):
            losses = [nn.functional.cross_entropy(supernet(x), y) for x, y in arch_batches.batches]
        assert own["loss_of"](one) == float(torch.stack(losses).mean())
    assert own["ranked"] == sorted(own["genotypes"], key=own["loss_of"])
