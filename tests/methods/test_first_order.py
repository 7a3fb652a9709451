import copy

import pytest
import torch
import torch.nn.functional as F
from searchers import build_searcher
from small_judge import judge_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from nas.errors import ConfigError, SpaceError
from nas.methods.first_order import FirstOrder, weights_frozen
from nas.methods.sampler import GDAS, Gates, Softmax, gumbel_noise
from nas.methods.tuning import Recipe, Tuning
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice


class Fixed:
    """Draws what it is told; otherwise GDAS. Counts its calls and keeps its gates."""

    samples = 1

    def __init__(self):
        self.plan = None
        self.gates = []

    def __call__(self, logits, temperature, generator):
        gates = GDAS()(logits, temperature, generator)
        if self.plan is not None:
            drawn = torch.tensor(self.plan)
            one_hot = F.one_hot(drawn, logits.shape[-1]).to(logits)
            soft = (logits / temperature).softmax(dim=-1)
            gates = Gates(one_hot + soft - soft.detach(), drawn)
        self.gates.append(gates)
        return gates


def make(supernet, *, lr=0.05, momentum=0.9, weight_decay=1e-2, arch_lr=0.1, init_std=0.1, **kwargs):
    arch = ArchParams.from_model(supernet, init_std=init_std, generator=torch.Generator().manual_seed(1))
    return build_searcher(
        FirstOrder,
        supernet=supernet,
        arch=arch,
        sampler=kwargs.pop("sampler", Fixed()),
        weight_optim=torch.optim.SGD(
            supernet.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0
        ),
        arch_optim=torch.optim.Adam(arch.parameters(), lr=arch_lr, betas=(0.5, 0.999), weight_decay=1e-3),
        **kwargs,
    )


class Small(nn.Module):
    """Two choices between linear maps, without norms."""

    def __init__(self):
        super().__init__()
        self.one = Choice({name: nn.Linear(4, 4) for name in "abc"})
        self.two = Choice({name: nn.Linear(4, 3) for name in "de"})

    def forward(self, x):
        return self.two(self.one(x).tanh())


@pytest.fixture
def small():
    return make(Small())


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)


def image_batch(spec, images=6):
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(spec.num_classes, (images,), generator=generator)
    return torch.randn(images, *spec.input_shape, generator=generator), labels


def snapshot(module):
    return [p.detach().clone() for p in module.parameters()]


def unchanged(module, before):
    return all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))


# -- the weight step


def test_undrawn_operations_do_not_move(small, batch):
    one, two = small.supernet.one.candidates, small.supernet.two.candidates
    # Momentum of every operation first, so that there is something to move them by.
    for plan in ([0, 0], [1, 1], [2, 0]):
        small.sampler.plan = plan
        small.weight_step(batch, 1.0)
    undrawn = nn.ModuleList([one[0], one[2], two[1]])
    before = snapshot(undrawn)
    state = small.weight_optim.state
    momentum = [state[p]["momentum_buffer"].clone() for p in undrawn.parameters()]
    drawn = nn.ModuleList([one[1], two[0]])
    drawn_before = snapshot(drawn)

    small.sampler.plan = [1, 0]
    small.weight_step(batch, 1.0)

    assert all(p.grad is None for p in undrawn.parameters())
    assert unchanged(undrawn, before)
    for p, m in zip(undrawn.parameters(), momentum, strict=True):
        assert torch.equal(state[p]["momentum_buffer"], m)
    assert all(p.grad is not None for p in drawn.parameters())
    assert not any(torch.equal(p, b) for p, b in zip(drawn.parameters(), drawn_before, strict=True))


def test_undrawn_operations_do_not_move_in_the_spaces_that_ship(space, spec):
    searcher = make(space.supernet(spec))
    searcher.weight_step(image_batch(spec), 1.0)
    before = {id(p): p.detach().clone() for p in searcher.supernet.parameters()}
    searcher.weight_step(image_batch(spec), 1.0)
    drawn = searcher.sampler.gates[-1].drawn.tolist()
    undrawn = 0
    for k, sharing in zip(drawn, searcher.choices.values(), strict=True):
        for choice in sharing:
            for index, candidate in enumerate(choice.candidates):
                for p in candidate.parameters():
                    if index != k:
                        undrawn += 1
                        assert p.grad is None
                        assert torch.equal(p, before[id(p)])
    assert undrawn > 0


def test_the_weight_step_is_sgd_on_the_drawn_network(small, batch):
    small.sampler.plan = [2, 1]
    reference = copy.deepcopy(
        nn.Sequential(small.supernet.one.candidates[2], nn.Tanh(), small.supernet.two.candidates[1])
    )
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True)
    for _ in range(3):
        result = small.weight_step(batch, 1.0)
        optimizer.zero_grad()
        scores = reference(batch[0])
        loss = F.cross_entropy(scores, batch[1])
        loss.backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), 5.0)
        optimizer.step()
        assert torch.allclose(result.loss, loss)
        assert torch.allclose(result.grad_norm, norm)
        assert result.metric.item() == (scores.argmax(dim=1) == batch[1]).sum().item()
        assert result.examples == 8
    trained = nn.Sequential(small.supernet.one.candidates[2], nn.Tanh(), small.supernet.two.candidates[1])
    for p, q in zip(trained.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(p, q)


def test_the_weight_step_does_not_touch_the_logits(small, batch):
    before = snapshot(small.arch)
    small.weight_step(batch, 1.0)
    assert small.arch.logits.grad is None
    marker = torch.full_like(small.arch.logits, 7.0)
    small.arch.logits.grad = marker
    small.weight_step(batch, 1.0)
    assert small.arch.logits.grad is marker
    assert (marker == 7).all()
    assert unchanged(small.arch, before)


def test_clipping(batch):
    def norm_after(grad_clip):
        searcher = make(Small(), grad_clip=grad_clip)
        searcher.sampler.plan = [0, 0]
        reported = searcher.weight_step(batch, 1.0).grad_norm
        grads = [p.grad for p in searcher.weights if p.grad is not None]
        return reported.item(), nn.utils.get_total_norm(grads).item()

    reported, norm = norm_after(0.01)
    assert norm == pytest.approx(0.01, rel=1e-4)
    assert reported > 0.1  # before clipping
    reported, norm = norm_after(0)
    assert norm == pytest.approx(reported, rel=1e-5)
    assert norm > 0.1


def test_clipping_ignores_stale_gradients_of_the_other_level(small, batch):
    small.sampler.plan = [1, 0]
    expected = copy.deepcopy(small).weight_step(batch, 1.0)
    small.arch.logits.grad = torch.full_like(small.arch.logits, 1e6)
    for p in small.weights:  # of an earlier step, as well
        p.grad = torch.full_like(p, 1e6)
    got = small.weight_step(batch, 1.0)
    assert torch.equal(got.grad_norm, expected.grad_norm)


def test_negative_grad_clip():
    with pytest.raises(ConfigError, match=r"searcher\.grad_clip must be >= 0, got -1"):
        make(Small(), grad_clip=-1)


# -- the architecture step


def test_the_architecture_step_moves_the_logits_and_no_weight(space, spec):
    searcher = make(space.supernet(spec))
    flags = [p.requires_grad for p in searcher.weights]
    weights, logits = snapshot(searcher.supernet), searcher.arch.logits.detach().clone()
    result = searcher.arch_step(image_batch(spec), image_batch(spec), 1.0)
    assert unchanged(searcher.supernet, weights)
    assert all(p.grad is None for p in searcher.weights)
    assert [p.requires_grad for p in searcher.weights] == flags
    assert (searcher.arch.logits != logits).any()
    assert result.grad_norm.item() == pytest.approx(searcher.arch.logits.grad.norm().item(), rel=1e-5)
    assert not result.loss.requires_grad


def test_a_weight_that_was_frozen_before_stays_frozen(small, batch):
    frozen = small.weights[0]
    frozen.requires_grad_(False)
    small.arch_step(batch, batch, 1.0)
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in small.weights[1:])


def test_requires_grad_is_restored_after_an_exception():
    model = nn.Linear(2, 2)

    def fail():
        with weights_frozen(model.parameters()):
            assert not any(p.requires_grad for p in model.parameters())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(p.requires_grad for p in model.parameters())


def test_the_architecture_step_leaves_gradients_of_the_weights_as_they_are(small, batch):
    small.weight_step(batch, 1.0)
    before = [None if p.grad is None else p.grad.clone() for p in small.weights]
    norm = small.arch_step(batch, batch, 1.0).grad_norm
    for p, b in zip(small.weights, before, strict=True):
        assert (p.grad is None and b is None) or torch.equal(p.grad, b)
    assert norm.item() == pytest.approx(small.arch.logits.grad.norm().item(), rel=1e-5)


def test_gates_are_closed_after_a_step_and_after_an_error(small, batch):
    small.weight_step(batch, 1.0)
    assert small.supernet.one.gate is None
    with pytest.raises(RuntimeError):
        small.arch_step((batch[0][:, :2], batch[1]), batch, 1.0)
    assert small.supernet.one.gate is None
    assert all(p.requires_grad for p in small.weights)


class Blocks(nn.Module):
    """Choices behind one another, whose activations are computed again in the backward pass if that is asked for."""

    def __init__(self, *, again, reentrant=False):
        super().__init__()
        self.again, self.reentrant = again, reentrant
        self.blocks = nn.ModuleList(
            Choice(
                {
                    "tanh": nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
                    "norm": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)),
                }
            )
            for _ in range(3)
        )

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant) if self.again else block(x)
        return x


@pytest.mark.parametrize("sampler", [Fixed, Softmax])
def test_choices_may_be_run_again_in_the_backward_pass(sampler, batch):
    results = []
    for again in (False, True):
        torch.manual_seed(0)
        searcher = make(Blocks(again=again), sampler=sampler())
        for _ in range(3):
            searcher.weight_step(batch, 1.0)
            searcher.arch_step(batch, batch, 1.0)
        results.append([*snapshot(searcher.supernet), *snapshot(searcher.arch)])
        judge = judge_of(searcher.supernet, *batch, classes=3)
        tuning = Tuning(judge, searcher.arch, Recipe(lr=0.1, logits=False), total=2)
        tuning.run(dict.fromkeys(searcher.choices, 0), steps=2)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("sampler", [Fixed, Softmax])
def test_checkpointing_that_loses_the_gradients_of_gates_is_refused(sampler, batch):
    searcher = make(Blocks(again=True, reentrant=True), sampler=sampler())
    with pytest.raises(SpaceError) as caught:
        searcher.arch_step((batch[0].requires_grad_(), batch[1]), batch, 1.0)
    assert str(caught.value) == (
        "a Choice between tanh, norm is run by torch.utils.checkpoint with use_reentrant=True, which loses the "
        "gradients of gates; set use_reentrant=False"
    )


class Head(nn.Module):
    """x -> scores, by one of three fixed matrices."""

    def __init__(self, matrices):
        super().__init__()
        candidates = {}
        for index, matrix in enumerate(matrices):
            linear = nn.Linear(*reversed(matrix.shape), bias=False, dtype=matrix.dtype)
            linear.weight.data.copy_(matrix)
            candidates[f"m{index}"] = linear
        self.choice = Choice(candidates)

    def forward(self, x):
        return self.choice(x)


@pytest.mark.parametrize("tau", [5.0, 1.0, 0.5])
def test_the_architecture_gradient_of_a_linear_problem_in_closed_form(tau):
    """With drawn k: dL/d logit_j = <dL/do, o_k> y_k (1[j=k] - y_j) / tau, and dL/do = (softmax(o) - onehot) / N."""
    generator = torch.Generator().manual_seed(4)
    matrices = torch.randn(3, 3, 4, dtype=torch.float64, generator=generator)
    x = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    labels = torch.tensor([0, 1, 2, 1, 0])
    searcher = make(Head(matrices), sampler=GDAS())
    searcher.arch.double()
    logits = searcher.arch.logits.detach().clone()
    noise = gumbel_noise(logits, torch.Generator().manual_seed(2))  # the searcher's own seed

    searcher.arch_step((x, labels), (x, labels), tau)

    perturbed = logits[0].log_softmax(dim=0) + noise[0]
    y, k = (perturbed / tau).softmax(dim=0), int(perturbed.argmax())
    output = x @ matrices[k].T
    upstream = (output.softmax(dim=1) - F.one_hot(labels, 3)) / len(x)
    gate = (upstream * output).sum()
    expected = gate * y[k] * (F.one_hot(torch.tensor(k), 3) - y) / tau
    assert torch.allclose(searcher.arch.logits.grad[0], expected, rtol=1e-9, atol=1e-15)


def test_every_logit_gets_a_gradient(space, spec):
    searcher = make(space.supernet(spec), arch_lr=0.0)
    reached = torch.zeros_like(searcher.arch.mask)
    for _ in range(40):
        searcher.arch_step(image_batch(spec, 3), image_batch(spec, 4), 2.0)
        assert searcher.arch.logits.grad.isfinite().all()
        reached |= searcher.arch.logits.grad != 0
        if torch.equal(reached, searcher.arch.mask):
            break
    assert torch.equal(reached, searcher.arch.mask)


def test_the_better_operation_wins(batch):
    """One candidate solves the task, the other is constant: the logits must find out, and in the right direction."""
    good = 5 * torch.eye(3)
    bad = torch.zeros(3, 3)
    searcher = make(Head(torch.stack([bad, good])), arch_lr=0.05, init_std=0.0)
    labels = torch.arange(3).repeat(4)
    images = F.one_hot(labels, 3).float()
    for _ in range(200):
        searcher.arch_step((images, labels), batch, 1.0)
    assert searcher.arch.probs()[0, 1] > 0.8


# -- randomness


def test_every_step_draws_afresh(small, batch):
    for _ in range(4):
        small.weight_step(batch, 1.0)
        small.arch_step(batch, batch, 1.0)
    assert len(small.sampler.gates) == 8  # one a step, no more
    soft = torch.stack([gates.drawn for gates in small.sampler.gates])
    assert len({tuple(row) for row in soft.tolist()}) > 1
    # The same steps from the same generator: the noise differs from step to step, and is used up one draw a step.
    reference = torch.Generator().manual_seed(2)
    like = small.arch.logits.detach()
    for _ in range(8):
        gumbel_noise(like, reference)
    assert torch.equal(reference.get_state(), small.generator.get_state())


def test_steps_are_a_function_of_the_seed(space, spec):
    def trace():
        torch.manual_seed(0)
        searcher = make(space.supernet(spec))
        losses = []
        for _ in range(3):
            losses.append(searcher.weight_step(image_batch(spec), 1.0).loss.item())
            losses.append(searcher.arch_step(image_batch(spec), image_batch(spec), 1.0).loss.item())
        return losses

    assert trace() == trace()


@pytest.mark.parametrize("samples", [1, 3])
def test_drawing_ahead_draws_the_same(samples):
    """To the bit: the logits do not move between the two steps' draws."""
    results = []
    for ahead in (False, True):
        torch.manual_seed(0)
        searcher = make(Small(), sampler=GDAS(samples=samples))
        images, labels = torch.randn(2, 5, 4), torch.randint(3, (2, 5))
        for _ in range(4):
            first, *others = searcher.draw_ahead(1.0) if ahead else [None]
            searcher.weight_step((images[0], labels[0]), 1.0, first)
            searcher.arch_step((images[1], labels[1]), (images[0], labels[0]), 1.0, 0.0, others)
        results.append([searcher.arch.logits.detach(), *searcher.weights, searcher.generator.get_state()])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
