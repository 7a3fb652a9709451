"""Supernets with replay compute the same as without. On a CPU, the recorder computes again instead of replaying."""

import copy
import dataclasses

import pytest
import torch
from replayed_search import Again, assert_same, batch, searcher, steps
from torch import nn

from nas.methods import first_order
from nas.methods.cuda_graphs.cuda_graphs import CudaGraphs
from nas.methods.cuda_graphs.draws import Draws
from nas.methods.cuda_graphs.renewal import Renewal
from nas.methods.cuda_graphs.replayed_module import Replayed, replay
from nas.methods.cuda_graphs.trace import tapes
from nas.methods.sampler import GDAS, Softmax, Uniform
from nas.runtime.precision import Precision
from nas.spaces.cell import Cell, DropPath
from nas.spaces.ops import Noise, ReLUConvBN, Zero
from nas.supernet.choice import Choice, Gate, choices, gates


class Custom(nn.Module):
    """Choices without cells, one inside another, a fixed module with a second use in a pass, one that is random."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        inner = Choice({"tanh": nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh()), "same": nn.Identity()})
        self.outer = Choice({"inner": nn.Sequential(nn.Conv2d(4, 4, 1), inner), "conv": nn.Conv2d(4, 4, 3, padding=1)})
        self.twice = nn.Conv2d(4, 4, 1)
        self.after = Choice({"conv": nn.Conv2d(4, 4, 1), "none": nn.Identity()})
        self.drop = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.5))
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        x = self.twice(self.twice(self.outer(self.stem(x))).sin())
        return self.head(self.drop(self.after(x)).mean(dim=(2, 3)))


@pytest.fixture(params=["nas_bench_201", "entangled", "darts", "custom"])
def supernet(request, spec):
    torch.manual_seed(2)
    if request.param == "custom":
        return Custom().double()
    if request.param == "entangled":
        return dataclasses.replace(request.getfixturevalue("nas_bench_201"), entangled=True).supernet(spec).double()
    return request.getfixturevalue(request.param).supernet(spec).double()


@pytest.mark.parametrize(
    "sampler", [GDAS(), *(pytest.param(sampler, marks=pytest.mark.long) for sampler in (GDAS(samples=2), Uniform()))]
)
def test_a_search_is_the_same(supernet, sampler):
    """But for the order in which float64 sums are taken. What was not drawn rests: it has no momentum."""
    recorder = Again()
    expected = steps(searcher(supernet, sampler))
    assert_same(expected, steps(searcher(supernet, sampler, recorder)), rtol=1e-9, atol=1e-12)
    assert len(recorder.recorded) > 10


@pytest.mark.parametrize("sampler", [GDAS(estimator="autodl"), Softmax()])
def test_where_several_candidates_count_nothing_is_replayed(spec, nas_bench_201, sampler):
    supernet = nas_bench_201.supernet(spec).double()
    recorder = Again()
    expected = steps(searcher(supernet, sampler))
    assert_same(expected, steps(searcher(supernet, sampler, recorder)), rtol=1e-9, atol=1e-12)
    # All but weight steps of GDAS.
    assert bool(recorder.recorded) == isinstance(sampler, GDAS)


def test_each_candidate_is_recorded_once_for_each_level(spec, nas_bench_201):
    supernet = nas_bench_201.supernet(spec).double()
    recorder = Again()
    made = searcher(supernet, GDAS(), recorder)
    steps(made, 60)
    count = len(recorder.recorded)
    steps(made, 20)
    assert len(recorder.recorded) == count
    # A place's candidates are never under way together, and share their memory.
    tape = made.supernet._compiled_call_impl._tape
    assert len(set(recorder.recorded)) == len(list(tape.places()))


def test_recording_moves_no_statistics_and_other_results_are_not_used(capsys):
    made = Choice({"conv": ReLUConvBN(4, 4, 1, False, kernel_size=3), "same": nn.Identity()}).train()
    alone, x = copy.deepcopy(made), torch.randn(2, 4, 6, 6)
    recorder = Again()
    recorder.record = lambda work, pool: lambda: work.__self__.target.value.zero_()  # nothing but the rehearsal runs
    replay(made, recorder)
    for _ in range(2):
        outputs = []
        for choice in (alone, made):
            with gates({"": [choice]}, {"": Gate(None, 0)}):
                outputs.append(choice(x))
        assert torch.equal(*outputs)
    assert_same(alone.state_dict(), made.state_dict(), rtol=0, atol=0)
    assert capsys.readouterr().err.count("a Choice is not replayed, as tracing it took another way") == 1


def test_what_is_replayed_in_part_is_told(spec, nas_bench_201, capsys):
    replay(nas_bench_201.supernet(spec), Again())
    assert capsys.readouterr().err == ""
    replay(Custom(), Again())  # of which one choice holds another
    assert "warning: runtime.cuda_graphs replays 1 of the 3 choices of a Custom, " in capsys.readouterr().err


def of_choice(*, key=None, **made):
    return Choice(made, key=key)


class Model(nn.Module):
    """A choice behind or before what a test is about. forward: of the model and its input."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.choice = of_choice(conv=nn.Conv2d(4, 4, 1), same=nn.Identity())
        self.scale = nn.Parameter(torch.ones(()))  # for passes without other weights
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def passes(model, recorder, *, x=None, draws=(0, 1, 0, 0, 1), lr=0.1):
    """Outputs, gradients and buffers of a few passes, the weights being moved by a fused optimiser."""
    torch.manual_seed(0)
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, fused=True)
    x = torch.randn(2, 4, 6, 6) if x is None else x
    if recorder is not None:
        replay(model, recorder)
    found = choices(model)
    seen = {}
    for number, drawn in enumerate(draws):
        optimizer.zero_grad(set_to_none=True)
        with gates(found, {key: Gate(None, drawn) for key in found}):
            output = model(x)
        (output * model.scale).sin().sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for weight in optimizer.param_groups[0]["params"]:
            if weight.grad is not None and "momentum_buffer" not in optimizer.state[weight]:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        optimizer.step()
        seen[f"output {number}"] = output.detach().clone()  # the next pass writes into the same place
        seen |= {f"{name} {number}": value.clone() for name, value in model.state_dict().items()}
        for name, weight in model.named_parameters():
            seen[f"gradient of {name} {number}"] = torch.zeros(()) if weight.grad is None else weight.grad.clone()
    return seen


class Average(nn.Module):
    """Rebinds its buffer instead of moving it in place."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        return self.weight * (x - self.mean)


class Mixing(nn.Module):
    """The gradient of its weight has another layout than the weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(16.0).view(4, 4))

    def forward(self, x):
        return torch.einsum("bihw,oi->bohw", x, self.weight)


class Shifts(nn.Module):
    """Two weights with one and the same gradient."""

    def __init__(self):
        super().__init__()
        self.one, self.two = (nn.Parameter(torch.ones(2, 4, 6, 6)) for _ in range(2))

    def forward(self, x):
        return x + self.one + self.two


def conv_relu(inplace):
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=inplace))


def without_gradients(part, x):
    with torch.no_grad():
        return part(x)


def at_full_precision(part, x):
    with torch.autocast("cpu", enabled=False):
        return part(x.float())


CONV, NORM = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
MODELS = {
    "another way": Model(lambda m, x: m.choice(x) if isinstance(x, torch.Tensor) else m.choice(x) + 1),
    "tied": Model(lambda m, x: m.conv(m.seq(m.choice(x)).sin()), conv=CONV, seq=nn.Sequential(CONV, nn.Tanh())),
    "tied norm": Model(
        lambda m, x: m.seq(m.choice(m.norm(x).sin()).sin()), norm=NORM, seq=nn.Sequential(nn.Conv2d(4, 4, 1), NORM)
    ),
    "buffer": Model(lambda m, x: m.average(m.choice(x)), average=Average()),
    "layout": Model(lambda m, x: m.mixing(m.choice(x)), mixing=Mixing()),
    "alias": Model(lambda m, x: m.shifts(m.choice(x)), shifts=Shifts()),
    "in place": Model(lambda m, x: m.relu(m.stem(m.choice(x)) + 1), stem=conv_relu(True), relu=nn.ReLU(inplace=True)),
    "functional": Model(lambda m, x: torch.nn.functional.relu(m.choice(x) + 1, inplace=True)),
    "without gradients": Model(lambda m, x: m.choice(x) * without_gradients(m.stem, x), stem=conv_relu(False)),
    "tuple": Model(lambda m, x: m.gru(m.choice(x).flatten(2))[0], gru=nn.GRU(36, 3)),
    "pair": Model(lambda m, x: (m.choice(x), x)[0]),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_all_kinds(name):
    """Replayed, in part or not at all: what matters is that it is the same."""
    expected = passes(MODELS[name], None)
    assert_same(expected, passes(MODELS[name], Again()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hooked", ["", "choice", "identity", "cell"])
def test_hooks_change_outputs_as_without(hooked):
    def edge(source, node):
        return of_choice(conv=nn.Conv2d(4, 4, 1), same=nn.Identity())

    cell = Cell(inputs=1, nodes=1, edge=edge, outputs=[1])
    model = Model(lambda m, x: m.cell([m.identity(m.choice(x))])[0], identity=nn.Identity(), cell=cell)

    def change(module, inputs, output):  # by less than what shows that a trace took another way
        return [1.05 * output[0]] if hooked == "cell" else 1.05 * output

    model.get_submodule(hooked).register_forward_hook(change)
    assert_same(passes(model, None), passes(model, Again()), rtol=1e-4, atol=1e-5)


def test_indices_are_looked_up_from_the_first_pass_on():
    model = Model(lambda m, x: m.choice(m.embedding(x).movedim(-1, 1)), embedding=nn.Embedding(5, 4))
    x = torch.randint(5, (2, 6, 6))
    assert_same(passes(model, None, x=x), passes(model, Again(), x=x), rtol=1e-5, atol=1e-6)


def test_cells_that_return_other_nodes_run_other_edges():
    def cell(outputs):
        return Cell(
            inputs=1,
            nodes=2,
            edge=lambda source, node: of_choice(
                conv=nn.Conv2d(4, 4, 1), none=Zero(4, 4, 1, False), same=nn.Identity(), key=f"{source}-{node}"
            ),
            outputs=outputs,
        )

    model = Model(lambda m, x: m.two([m.one([m.choice(x)])[0]])[0], one=cell([2]), two=cell([1, 2]))
    assert_same(passes(model, None), passes(model, Again()), rtol=1e-5, atol=1e-6)


def test_cells_and_choices_of_a_model_that_is_replayed_in_part():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 4, 1)

            def edge(source, node):
                return of_choice(conv=nn.Conv2d(4, 4, 1), none=Zero(4, 4, 1, False), same=nn.Identity())

            self.cell = Cell(inputs=1, nodes=2, edge=edge, outputs=[2])
            # They have one gate, and the second one has no weights to replay.
            self.one = of_choice(conv=nn.Conv2d(4, 4, 1), same=nn.Identity(), key="twice")
            self.two = of_choice(conv=nn.Tanh(), same=nn.Identity(), key="twice")
            self.head = nn.Linear(4, 10)

        def forward(self, x):
            x = self.two(self.one(self.cell([self.stem(x)])[0].sin()))  # sin cannot be traced
            return self.head(x.mean(dim=(2, 3)))

    supernet = Branches().double()
    assert replayed(copy.deepcopy(supernet)) == {"stem", "cell", "one", "head"}
    expected = steps(searcher(supernet, GDAS()), 8)
    assert_same(expected, steps(searcher(supernet, GDAS(), Again()), 8), rtol=1e-9, atol=1e-12)


def test_weights_that_were_frozen_meanwhile():
    model = Model(lambda m, x: m.choice(m.stem(x)), stem=nn.Conv2d(4, 4, 1)).train()
    replay(model, Again())
    model.stem.requires_grad_(False)
    with gates(choices(model), {"choice": Gate(None, 0)}):
        model(torch.randn(2, 4, 6, 6)).sum().backward()
    assert model.choice.candidates[0].weight.grad is not None


def test_what_a_hook_freezes_after_an_epoch_is_recorded_anew(spec, nas_bench_201):
    supernet = nas_bench_201.supernet(spec).double()
    found = []
    for recorder in (None, Again()):
        made = searcher(supernet, GDAS(), recorder)
        renewal = Renewal(made.supernet)
        for learns in (True, False, True):
            for part in (made.supernet.stem, *made.choices["cell/0-1"]):
                part.requires_grad_(learns).train(learns)
            renewal.after_epoch(None)
            found.append(steps(made))
    for expected, replayed in zip(found[:3], found[3:], strict=True):
        assert_same(expected, replayed, rtol=1e-9, atol=1e-12)


def test_a_part_at_a_precision_of_its_own_keeps_it():
    model = Model(lambda m, x: at_full_precision(m.stem, m.choice(x)), stem=nn.Conv2d(4, 4, 1))
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = (passes(model, recorder, lr=0.0) for recorder in (None, Again()))
    assert_same(expected, found, rtol=1e-5, atol=1e-6)
    assert found["output 0"].dtype == torch.float32


def test_a_type_may_turn_out_wider():
    class Single(nn.Module):
        def forward(self, x):
            return x.float() * 1.001

    model = Model(
        lambda m, x: m.choice(m.stem(x)), stem=nn.Conv2d(4, 4, 1), choice=of_choice(a=nn.Conv2d(4, 4, 1), b=Single())
    )
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = (passes(model, recorder, draws=(0, 1, 0), lr=0.0) for recorder in (None, Again()))
    assert found["output 1"].dtype == torch.float32
    assert torch.equal(found["output 1"], expected["output 1"])
    assert not torch.equal(found["output 1"], found["output 1"].bfloat16().float())


def test_memory_of_which_every_recording_is_gone_takes_no_more():
    class Single(nn.Module):
        def forward(self, x):
            return x.float()

    model = Model(
        lambda m, x: m.after(m.choice(m.stem(x))),
        stem=nn.Conv2d(4, 4, 1),
        choice=of_choice(a=nn.Conv2d(4, 4, 1), b=Single()),
        after=nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh()),
    )
    recorder = Again()
    with torch.autocast("cpu", torch.bfloat16):
        passes(model, recorder, draws=(0, 1, 0), lr=0.0)
    assert len(set(recorder.recorded)) == 4  # stem; choice; after, before its input turned out wider and then


def test_a_pass_is_differentiated_once_before_the_next():
    model = of_choice(conv=nn.Conv2d(1, 1, 1), same=nn.Identity()).train()
    replay(model, Again())
    outputs = []
    for _ in range(2):
        with gates({"": [model]}, {"": Gate(None, 0)}):
            outputs.append(model(torch.randn(1, 1, 2, 2)).sum())
    with pytest.raises(RuntimeError, match="differentiated once, and before the next one"):
        outputs[0].backward()
    outputs[1].backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once, and before the next one"):
        outputs[1].backward()
    with gates({"": [model]}, {"": Gate(None, 0)}):
        again = model(torch.randn(1, 1, 2, 2)).sum()
    with pytest.raises(RuntimeError, match="set those of the weights to None before the next"):
        again.backward()


def test_what_is_not_a_training_step_runs_as_it_is(spec, nas_bench_201):
    made = searcher(nas_bench_201.supernet(spec).double(), GDAS(), recorder := Again())
    images, _ = batch(0)
    by_key = {key: Gate(None, 1) for key in made.arch.keys}
    with gates(made.choices, by_key), torch.no_grad():
        made.supernet(images)
        made.supernet.eval()(images)
    with gates(made.choices, by_key):
        made.supernet(images)
    assert not recorder.recorded
    assert all(module._compiled_call_impl is None for module in copy.deepcopy(made.supernet).modules())


def test_a_replayed_pass_sets_neither_gates_nor_weights(spec, nas_bench_201, monkeypatch):
    made = searcher(nas_bench_201.supernet(spec).double(), GDAS(), Again())
    made.arch_optim.param_groups[0]["lr"] = 0.0  # so that both levels draw the same again
    start, learning = made.generator.get_state(), []

    def spied(*arguments):
        learning.append({weight.requires_grad for weight in made.weights})
        return gates(*arguments)

    def iteration():
        learning.clear()
        made.generator.set_state(start)
        made.weight_step(batch(0), 1.0)
        made.arch_step(batch(1), batch(0), 1.0)
        return list(learning)

    monkeypatch.setattr(first_order, "gates", spied)
    assert iteration() == [{True}, {False}]  # they are recorded
    iteration()  # a recording makes the other level look again
    assert iteration() == []
    for part in made.supernet.modules():
        if isinstance(part, DropPath):
            part.active = True  # is not replayed
    assert iteration() == [{True}, {False}]
    assert all(weight.requires_grad for weight in made.weights)
    assert all(choice.gate is None for sharing in made.choices.values() for choice in sharing)


def test_other_shapes_and_types_are_recorded_anew(spec, nas_bench_201):
    supernet = nas_bench_201.supernet(spec).double()
    one, two = searcher(supernet, GDAS()), searcher(supernet, GDAS(), Again())
    for size in (8, 12, 8):
        assert_same(steps(one, 2, size=size), steps(two, 2, size=size), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("supernet", ["nas_bench_201", "custom"], indirect=True)
@pytest.mark.parametrize("unrecorded", ["forward", "backward"])
def test_what_cannot_be_recorded_runs_each_time(supernet, unrecorded, capsys):
    class Sometimes(Again):
        def record(self, work, pool):
            super().record(work, pool)
            if len(self.recorded) % 3 == 0 and work.__name__ == unrecorded:
                raise RuntimeError("operation not permitted when stream is capturing\nand so on")
            return work

    expected = steps(searcher(supernet, GDAS()))
    assert_same(expected, steps(searcher(supernet, GDAS(), Sometimes())), rtol=1e-9, atol=1e-12)
    told = capsys.readouterr().err
    assert "cannot be recorded (operation not permitted when stream is capturing); it runs as without" in told
    assert "and so on" not in told


def replayed(model):
    replay(model, Again())
    return {name for name, module in model.named_modules() if isinstance(module._compiled_call_impl, Replayed)}


def test_a_model_is_replayed_as_a_whole_or_in_its_largest_parts(spec, nas_bench_201, darts):
    assert replayed(nas_bench_201.supernet(spec)) == replayed(darts.supernet(spec)) == {""}
    partial = replayed(dataclasses.replace(darts, partial_channels=2).supernet(spec))
    assert {"stem", "cells.0.preprocess_last", "cells.0.graph.edges.0.0.choice", "head"} <= partial
    # Neither what is random nor a choice with a choice inside.
    assert replayed(Custom()) == {"stem", "twice", "after", "drop.0", "head"}
    noisy = Custom()
    noisy.after = Choice({"noise": Noise(4, 4, 1, False), "conv": nn.Conv2d(4, 4, 1)})
    assert replayed(noisy) == {"stem", "twice", "drop.0", "head"}


def test_all_draws_of_a_small_space_are_remembered(spec, nas_bench_201, darts):
    """5^6 = 15,625 of NAS-Bench-201. Of a large space only some are, and what was forgotten is made again."""
    supernet = nas_bench_201.supernet(spec)
    replay(supernet, Again())
    draws = supernet._compiled_call_impl._draws
    assert draws.most >= 5**6
    assert Draws(next(tapes(darts.supernet(spec)))[1]).most < 5**6
    first, draws.most = draws.of((2, 0, 1, 3, 0, 4)), 2
    for drawn in ((2, 2, 1, 3, 0, 4), (2, 0, 2, 3, 0, 4)):
        draws.of(drawn)
    again = draws.of((2, 0, 1, 3, 0, 4))
    assert again is not first
    assert again == first
    assert draws.of((2, 0, 1, 3, 0, 4)) is again


def test_a_gradient_cannot_be_differentiated():
    model = Choice({"conv": nn.Conv2d(1, 1, 1), "same": nn.Identity()})
    replay(model, Again())
    x = torch.randn(1, 1, 2, 2, requires_grad=True)
    with gates({"": [model]}, {"": Gate(None, 0)}):
        (slope,) = torch.autograd.grad(model.train()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_a_search_is_the_same(supernet):
    device = torch.device("cuda", 0)
    expected = steps(searcher(supernet, GDAS(), device=device), device=device)
    made = searcher(supernet, GDAS(), CudaGraphs(device), device)
    assert_same(expected, steps(made, device=device), rtol=1e-8, atol=1e-10)


def test_in_mixed_precision(spec, nas_bench_201):
    """The numbers differ by the roundings of sums, of which Adam makes steps of the same size in other directions."""
    supernet = nas_bench_201.supernet(spec)
    one, two = (
        steps(searcher(supernet, GDAS(), recorder, precision=Precision("bf16", "cpu")), 2, dtype=torch.float32)
        for recorder in (None, Again())
    )
    assert torch.allclose(one["losses"], two["losses"], rtol=0.05)
