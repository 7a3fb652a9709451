"""The trial step: the errors it finds, their messages, and that it changes nothing."""

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from searchers import build_searcher
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nas.data.spec import ImageSpec
from nas.errors import ConfigError, SpaceError
from nas.methods.estimate import Measured, duration
from nas.methods.first_order import FirstOrder
from nas.methods.sampler import GDAS, Gates, Softmax
from nas.methods.score_function import ScoreFunction
from nas.methods.second_order import SecondOrder
from nas.methods.trial_step import try_search
from nas.runtime import distributed
from nas.runtime.memory import available_memory
from nas.runtime.nonfinite import Guard, OnNonfinite
from nas.runtime.precision import Precision
from nas.spaces.nas_bench_201 import NasBench201
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice, Gate, gates
from nas.training.held_objects import Stateful


def layer(*after):
    return nn.Sequential(nn.Linear(6, 6), *after)


class Model(nn.Module):
    """Everything that a step moves: norms, dropout, counters, generators of its own, spectral norms."""

    def __init__(self):
        super().__init__()
        self.c = Choice({"norm": layer(nn.BatchNorm1d(6), nn.Dropout(0.3)), "tanh": layer(nn.Tanh())})
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3))
        self.steps, self.seen, self.drawn = 0, [], torch.zeros(1)
        self.noise = torch.Generator().manual_seed(3)

    def forward(self, x):
        self.steps += 1
        self.seen.append(len(x))
        self.drawn.add_(torch.rand(1, generator=self.noise) + random.random() + np.random.rand())  # noqa: NPY002
        return self.spectral(self.c(x)) + 0 * self.drawn


def searcher_of(
    model, *, sampler=None, kind=FirstOrder, optim=torch.optim.SGD, precision="fp32", undrawn="rest", **options
):
    arch = ArchParams.from_model(model, generator=torch.Generator().manual_seed(1))
    precision = Precision(precision)
    return build_searcher(
        kind,
        supernet=model.train(),
        arch=arch,
        sampler=copy.deepcopy(sampler) or GDAS(),  # each search has a state of its own
        weight_optim=optim(model.parameters(), lr=0.1, **options),
        arch_optim=torch.optim.Adam(arch.parameters(), lr=0.1),
        precision=precision,
        scaler=precision.scaler(),
        guard=Guard(OnNonfinite("skip")),
        undrawn=undrawn,
    )


def batch(count=8, *shape):
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, *(shape or (6,)), generator=generator), torch.arange(count) % 3


def numbers(searcher):
    """All that a step may move."""
    model, optims = searcher.supernet, (searcher.weight_optim, searcher.arch_optim)
    return copy.deepcopy(
        {
            "model": model.state_dict(),
            "own": (model.steps, list(model.seen), model.drawn, model.noise.get_state()),
            "modes": [module.training for module in model.modules()],
            "arch": searcher.arch.state_dict(),
            "optims": [optim.state_dict() for optim in optims],
            "gradients": [p.grad for p in (*model.parameters(), *searcher.arch.parameters())],
            "scaler": searcher.scaler.state_dict(),
            "sampler": searcher.sampler.state_dict() if isinstance(searcher.sampler, Stateful) else None,
            "asleep": None if searcher.undrawn is None else [sorted(needed) for needed, _ in searcher.undrawn.asleep],
            "guard": vars(searcher.guard),
            "generators": (searcher.generator.get_state(), torch.get_rng_state()),
            "others": (random.getstate(), np.random.get_state()[1].tolist()),  # noqa: NPY002
            "hooks": len(model._forward_hooks),
        }
    )


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, torch.Generator):
        return torch.equal(one.get_state(), other.get_state())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (hasattr(one, "__dict__") and same(vars(one), vars(other)))


SEARCHES = {
    "gdas": {},
    "score function": {"sampler": ScoreFunction(control=True)},
    "decay of undrawn operations": {"momentum": 0.9, "undrawn": "decay"},
    "softmax": {"sampler": Softmax()},
    "momentum": {"momentum": 0.9, "fused": True},
    "adam": {"optim": torch.optim.AdamW},
    "fp16": {"precision": "fp16"},
    "second order": {"sampler": Softmax(), "kind": SecondOrder},
}


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("begun", [False, True])
def test_a_trial_leaves_no_trace_and_the_search_its_bits(name, begun):
    tried, untouched = (searcher_of(model, **SEARCHES[name]) for model in (Model(), Model()))
    untouched.supernet.load_state_dict(tried.supernet.state_dict())
    for searcher in (tried, untouched):
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        if begun:  # optimisers that have a state
            searcher.weight_step(batch(), 1.0)
            searcher.arch_step(batch(), batch(), 1.0)
        if searcher is tried:
            before = numbers(tried)
            assert try_search(tried, batch(), batch(9)).seconds > 0
            assert same(before, numbers(tried))
        searcher.weight_step(batch(), 1.0)
        searcher.arch_step(batch(), batch(), 1.0)
    tried.guard = untouched.guard
    assert same(numbers(tried), numbers(untouched))


def test_a_step_is_taken_on_full_batches_and_each_candidate_on_two_examples():
    searcher = searcher_of(Model())
    sizes = []
    searcher.supernet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    try_search(searcher, batch(8), batch(9))
    assert sizes == [2, 2, 8, 9]
    sizes.clear()
    try_search(searcher, batch(8), batch(9), learns=False)
    assert sizes == [2, 2, 8]


def test_what_is_not_finite_is_left_to_the_search():
    searcher = searcher_of(Model())
    before = searcher.guard.skipped
    with torch.no_grad():
        searcher.supernet.spectral.bias.fill_(torch.nan)
    try_search(searcher, batch(), batch())
    assert searcher.guard.skipped == before == 0


class Fails(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            raise RuntimeError(self.error)
        return x


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        ("view size is not compatible with", "runtime.memory_format=contiguous"),
        ("Expected more than 1 value per channel", "search.batch_size"),
        ("does not support sparse gradients", "sparse=False"),
        ("CUDA out of memory", "lower search.batch_size"),
        ("Expected all tensors to be on the same device", "buffers"),
        ("something else", "--debug"),
    ],
)
def test_the_module_that_fails_is_named_with_what_helps(error, fix):
    """Also where it is in a candidate that the first steps would not draw."""
    model = nn.Sequential(Choice({"a": nn.Linear(6, 3), "b": nn.Sequential(nn.Linear(6, 3), Fails(error))}))
    searcher = searcher_of(model)
    with torch.no_grad():
        searcher.arch.logits.copy_(torch.tensor([[50.0, -50.0]]))
    with pytest.raises(SpaceError) as caught:
        try_search(searcher, batch(), batch())
    assert caught.value.problem == f"a step of the search fails in 0.candidates.1.1 (Fails) (RuntimeError: {error})"
    assert fix in caught.value.fix
    assert model[0].gate is None
    assert not model._forward_hooks


def test_types_that_do_not_meet_under_autocast():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = Choice({"a": nn.Linear(6, 3), "b": nn.Linear(6, 3)})

        def forward(self, x):
            rows = torch.zeros(len(x), 3)
            rows[:, torch.arange(3)] = self.c(x)
            return rows

    try_search(searcher_of(Rows()), batch(), batch())
    with pytest.raises(SpaceError, match=r"in the model itself \(Rows\).*runtime\.precision=fp32"):
        try_search(searcher_of(Rows(), precision="bf16"), batch(), batch())


def test_outputs_that_are_a_pair_in_training():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = Choice({"a": nn.Linear(6, 3), "b": nn.Linear(6, 3)})

        def forward(self, x):
            return (self.c(x),) * 2 if self.training else self.c(x)

    with pytest.raises(SpaceError, match="in training the model returns a tuple"):
        try_search(searcher_of(Pair()), batch(), batch())


class Smoothed(Softmax):
    def __call__(self, logits, temperature, generator):
        return Gates(0.9 * logits.softmax(-1) + 0.1 / logits.shape[1])


def test_a_sampler_that_uses_the_padding_of_logits_is_refused():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = Choice({name: layer() for name in "abc"})
            self.narrow = Choice({name: nn.Linear(6, 3) for name in "ab"})

        def forward(self, x):
            return self.narrow(self.wide(x))

    searcher = searcher_of(Two(), sampler=Smoothed())
    with pytest.raises(ConfigError, match="the sampler Smoothed gives weights to the padding"):
        try_search(searcher, batch(), batch())
    with (
        gates(searcher.choices, dict.fromkeys(searcher.choices, Gate(None, 2))),
        pytest.raises(ConfigError, match="candidate 2 of a Choice between a, b is drawn, which has 2"),
    ):
        searcher.supernet(batch()[0])


def test_the_estimate_in_words():
    measured = Measured(0.5, 3 * 2**30, torch.device("cpu"))
    assert measured.line(epochs=10, steps=120) == (
        "estimate, by one step on trial: the search takes about 10 min (10 x 120 steps of 0.5 s, data and scoring not "
        "counted) and 3.0 GiB of memory, torch included"
    )
    assert measured.warning(None) is None
    assert measured.warning(4 * 2**30) is None
    assert "memory may be short, by an estimate: a step took 3.0 GiB of 3.2 GiB" in measured.warning(int(3.2 * 2**30))
    assert [duration(seconds) for seconds in (5, 300, 4 * 3600, 3 * 86400)] == ["5 s", "5 min", "4 h", "3.0 days"]
    available = available_memory(torch.device("cpu"))
    assert available is None or available > 0


def test_a_trial_has_the_random_numbers_of_its_process(monkeypatch):
    """The masks of two processes differ in the trial, as in the search after it."""

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.drawn = Choice({"a": nn.Linear(6, 3), "b": nn.Linear(6, 3)}), []

        def forward(self, x):
            self.drawn.append(torch.rand(4).tolist())
            return self.c(x)

    def drawn_by(index):
        searcher, seen = searcher_of(Noisy()), []
        searcher.supernet.drawn = Recorded(seen)
        share = replace(distributed.share(), index=index)
        with monkeypatch.context() as patched:
            patched.setattr(distributed, "share", lambda: share)
            patched.setattr(distributed, "first", lambda: index == 0)
            torch.manual_seed(7)
            try_search(searcher, batch(), batch(9))
        return seen, torch.rand(1).item()

    class Recorded:
        def __init__(self, seen):
            self.append = seen.append

    (first, after), (second, after_second) = drawn_by(0), drawn_by(1)
    assert len(first) == len(second) == 4
    assert not [one for one in first if one in second]
    assert after == after_second  # put back


class Counted(TorchDispatchMode):
    """Counts the operators that run, but for `detach`, whose number differs between releases of torch."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is not torch.ops.aten.detach.default
        return func(*args, **(kwargs or {}))


def operators(act):
    with Counted() as counted:
        act()
    return counted.count


def test_a_trial_takes_at_most_three_iterations(ops_tables):
    """By the number of operators, which is what takes the time in a network as small as the quickstart's."""
    space = NasBench201(ops=ops_tables["nas_bench_201"], channels=4, cells=1)
    images = ImageSpec(
        name="images", input_shapes=((3, 8, 8),), class_names=tuple("abc"), mean=(0.5,) * 3, std=(0.25,) * 3
    )
    searcher = searcher_of(space.supernet(images))
    few, others = batch(8, 3, 8, 8), batch(9, 3, 8, 8)

    def iterations(count=6):
        for _ in range(count):
            searcher.weight_step(few, 1.0)
            searcher.arch_step(others, few, 1.0)

    iterations()
    assert operators(lambda: try_search(searcher, few, others)) <= 3 * operators(iterations) / 6
