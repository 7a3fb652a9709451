"""searcher.undrawn: how SGD changes operations that are not drawn, compared with its formulas in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from searchers import build_searcher
from torch import nn

from nas.errors import ConfigError
from nas.methods.first_order import FirstOrder
from nas.methods.sampler import Gates, read_on_host
from nas.methods.undrawn import UndrawnDecay
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice, choices

LR, MOMENTUM, DECAY = 0.05, 0.9, 0.01


class Supernet(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = Choice({name: nn.Linear(4, 4) for name in "abc"}, key="one")
        self.two = Choice({name: nn.Linear(4, 3) for name in "de"}, key="two")

    def forward(self, x):
        return self.two(self.one(x).tanh())


class Planned:
    """Draws what it is told to, step after step."""

    samples = 1
    relaxed = False

    def __init__(self, plan):
        self.plan = iter(plan)

    def __call__(self, logits, temperature, generator):
        drawn = torch.tensor(next(self.plan))
        hard = F.one_hot(drawn, logits.shape[-1]).to(logits)
        soft = logits.softmax(dim=-1)
        return Gates(hard + soft - soft.detach(), drawn)


def searcher(supernet, plan, *, undrawn, **sgd):
    arch = ArchParams.from_model(supernet, init_std=0.0).double()
    settings = {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY} | sgd
    return build_searcher(
        FirstOrder,
        supernet=supernet,
        arch=arch,
        sampler=Planned(plan),
        weight_optim=torch.optim.SGD(supernet.parameters(), **settings),
        arch_optim=torch.optim.SGD(arch.parameters(), lr=0.0),
        generator=torch.Generator(),
        grad_clip=0.0,
        undrawn=undrawn,
    )


@pytest.fixture
def batch():
    return torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,))


# The operations that each step draws: of the weights, of the architecture, in turn.
PLAN = [[0, 0], [1, 1], [0, 0], [2, 0], [1, 1], [0, 1], [0, 0], [0, 0]]


def published(supernet, plan, batch, *, momentum, nesterov):
    """Weight steps of a code whose zero_grad zeroes: an operation that neither level has drawn yet has no gradient."""
    weights = dict(supernet.named_parameters())
    buffers, taking_part = {}, set()
    for number, (one, two) in enumerate(plan):
        x, y = batch
        hidden = F.linear(x, weights[f"one.candidates.{one}.weight"], weights[f"one.candidates.{one}.bias"]).tanh()
        scores = F.linear(hidden, weights[f"two.candidates.{two}.weight"], weights[f"two.candidates.{two}.bias"])
        drawn = [
            f"{key}.{part}" for key in (f"one.candidates.{one}", f"two.candidates.{two}") for part in ("weight", "bias")
        ]
        taking_part |= set(drawn)
        if number % 2:  # the architecture's step, that only leaves gradients to be zeroed
            continue
        gradients = dict(
            zip(drawn, torch.autograd.grad(F.cross_entropy(scores, y), [weights[n] for n in drawn]), strict=True)
        )
        with torch.no_grad():
            for name in taking_part:
                step = gradients.get(name, 0.0) + DECAY * weights[name]
                buffers[name] = momentum * buffers[name] + step if name in buffers else step
                step = step + momentum * buffers[name] if nesterov else buffers[name] if momentum else step
                weights[name] -= LR * step
    return weights


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_undrawn_operations_move_as_in_the_published_runs(nesterov, momentum, batch):
    if nesterov and not momentum:
        pytest.skip("SGD has no nesterov without momentum")
    supernet = Supernet().double()
    expected = published(copy.deepcopy(supernet), PLAN, batch, momentum=momentum, nesterov=nesterov)
    ours = searcher(supernet, PLAN, undrawn="decay", momentum=momentum, nesterov=nesterov)
    for _ in range(len(PLAN) // 2):
        ours.weight_step(batch, 1.0)
        ours.arch_step(batch, batch, 1.0)
    for name, weight in supernet.named_parameters():
        torch.testing.assert_close(weight.detach(), expected[name].detach(), rtol=1e-12, atol=1e-14, msg=name)


def test_they_rest_by_default(batch):
    supernet = Supernet().double()
    ours = searcher(supernet, [[0, 0], [1, 1], [0, 0]], undrawn="rest")
    ours.weight_step(batch, 1.0)
    before = [weight.clone() for weight in supernet.one.candidates[0].parameters()]
    ours.weight_step(batch, 1.0)
    assert all(torch.equal(w, b) for w, b in zip(supernet.one.candidates[0].parameters(), before, strict=True))


def test_a_resumed_search_moves_the_same_operations(batch):
    supernet = Supernet().double()
    whole = searcher(supernet, PLAN, undrawn="decay")
    for _ in range(2):
        whole.weight_step(batch, 1.0)
        whole.arch_step(batch, batch, 1.0)
    resumed = searcher(copy.deepcopy(supernet), PLAN[4:], undrawn="decay")
    resumed.weight_optim.load_state_dict(copy.deepcopy(whole.weight_optim.state_dict()))
    for one in (whole, resumed):
        one.weight_step(batch, 1.0)
        one.arch_step(batch, batch, 1.0)
        one.weight_step(batch, 1.0)
    for a, b in zip(whole.supernet.parameters(), resumed.supernet.parameters(), strict=True):
        assert torch.equal(a, b)


class Nested(Supernet):
    """The candidate c of the choice `one` holds the choice `two`, and a layer of its own."""

    def __init__(self):
        super().__init__()
        inner = nn.Sequential(nn.Linear(4, 4), Choice({name: nn.Linear(4, 4) for name in "de"}, key="two"))
        self.one = Choice({"a": nn.Linear(4, 4), "c": inner}, key="one")
        self.two = nn.Linear(4, 3)


def test_a_candidate_in_another_takes_part_once_both_are_drawn(batch):
    supernet = Nested().double()
    outer, inner = supernet.one.candidates[1][0], supernet.one.candidates[1][1].candidates
    ours = searcher(supernet, [[0, 0], [1, 1], [0, 0], [0, 0], [0, 0]], undrawn="decay")
    first = {layer: layer.weight.detach().clone() for layer in (outer, *inner)}
    ours.weight_step(batch, 1.0)  # draws d, but not c, in which d is
    ours.arch_step(batch, batch, 1.0)  # c with e in it
    ours.weight_step(batch, 1.0)
    for layer, factor in {outer: 1 - LR * DECAY, inner[1]: 1 - LR * DECAY, inner[0]: 1}.items():
        torch.testing.assert_close(layer.weight.detach(), first[layer] * factor, rtol=1e-12, atol=0)


def test_gates_that_were_drawn_ahead_are_noted_too(batch):
    supernet = Supernet().double()
    ours = searcher(supernet, [[0, 0], [1, 1], [2, 1]], undrawn="decay")
    first, *others = ours.draw_ahead(1.0)
    assert first.host is not None
    ours.weight_step(batch, 1.0, first)
    ours.arch_step(batch, batch, 1.0, 0.0, others)
    before = supernet.one.candidates[1].weight.detach().clone()  # only the architecture's step has drawn it
    ours.weight_step(batch, 1.0)
    torch.testing.assert_close(
        supernet.one.candidates[1].weight.detach(), before * (1 - LR * DECAY), rtol=1e-12, atol=0
    )
    assert read_on_host([first])[0].host is not None


@pytest.mark.parametrize(
    ("undrawn", "optimizer", "message"),
    [
        ("zero", torch.optim.SGD, "searcher.undrawn must be one of rest, decay, got 'zero'"),
        ("decay", torch.optim.Adam, "is what SGD does with zeroed gradients, got Adam"),
        ("decay", lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, dampening=0.1), "got weight_optim.dampening"),
    ],
)
def test_settings_that_cannot_work(undrawn, optimizer, message):
    supernet = Supernet()
    arch = ArchParams.from_model(supernet)
    with pytest.raises(ConfigError, match=message):
        build_searcher(
            FirstOrder,
            supernet=supernet,
            arch=arch,
            sampler=Planned([]),
            weight_optim=optimizer(supernet.parameters(), lr=0.1),
            arch_optim=torch.optim.SGD(arch.parameters(), lr=0.1),
            generator=torch.Generator(),
            undrawn=undrawn,
        )


def test_weights_that_the_optimiser_leaves_out_get_no_state():
    supernet = Supernet()
    supernet.one.candidates[0].requires_grad_(False)
    learning = [weight for weight in supernet.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=LR, momentum=MOMENTUM)
    UndrawnDecay(supernet, choices(supernet), optimizer).drew(["one", "two"], [0, 0])
    assert optimizer.state_dict()["state"].keys() == {4, 5}  # the drawn candidate of `two`
