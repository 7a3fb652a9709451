import pickle

import pytest
import torch
from torch import nn

from nas.errors import GenotypeError, SpaceError
from nas.supernet.choice import LEFT_OUT, Choice, Gate, choices, gates
from nas.supernet.dropped_edge import Dropped
from nas.supernet.freezing import freeze
from nas.supernet.genotype import check_chosen
from nas.supernet.hard_gate import HardGate, pass_through


class Scale(nn.Module):
    """Multiplies by a constant and counts its calls."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.factor


def scales(*factors, **kwargs):
    return Choice({f"times_{factor}": Scale(factor) for factor in factors}, **kwargs)


def row(*values):
    return tuple(torch.tensor(value) for value in values)


# -- running


@pytest.mark.parametrize("drawn", [0, 1, 2])
@pytest.mark.parametrize("hard", [None, HardGate(torch.ones((), requires_grad=True))])
def test_only_the_drawn_candidate_runs(drawn, hard):
    choice = scales(2.0, 3.0, 5.0)
    with gates(choices(choice), {"choice": Gate(None, drawn, hard)}):
        output = choice(torch.ones(2))
    assert output.tolist() == [[2.0, 3.0, 5.0][drawn]] * 2
    assert [op.calls for op in choice.candidates] == [int(k == drawn) for k in range(3)]


def test_a_soft_mixture_is_the_weighted_sum_of_all_candidates():
    choice = scales(2.0, 3.0, 5.0)
    with gates(choices(choice), {"choice": Gate(row(0.5, 0.25, 0.25), None)}):
        output = choice(torch.tensor([4.0]))
    assert output.tolist() == [4.0 * (0.5 * 2 + 0.25 * 3 + 0.25 * 5)]
    assert [op.calls for op in choice.candidates] == [1, 1, 1]


def test_padding_of_the_row_is_ignored():
    choice = scales(2.0, 3.0)
    with gates(choices(choice), {"choice": Gate(row(0.5, 0.5, 0.0, 0.0), None)}):
        assert choice(torch.ones(1)).item() == 2.5


def test_several_inputs_reach_the_candidate():
    class Add(nn.Module):
        def forward(self, x, y):
            return x + y

    class Sub(nn.Module):
        def forward(self, x, y):
            return x - y

    choice = Choice({"add": Add(), "sub": Sub()})
    with gates(choices(choice), {"choice": Gate(None, 1)}):
        assert choice(torch.tensor(5.0), torch.tensor(3.0)).item() == 2.0


def test_a_forward_without_gates_is_an_error():
    with pytest.raises(SpaceError, match=r"times_2.*without gates.*with gates\(\.\.\.\)"):
        scales(2, 3)(torch.ones(1))


def test_what_a_choice_does_not_have_may_be_asked_for():
    choice = scales(2, 3)
    assert not hasattr(choice, "weight")
    assert getattr(choice, "weight", None) is None
    with pytest.raises(SpaceError, match="'weight' was read of a Choice between times_2, times_3, which"):
        _ = choice.weight
    assert pickle.loads(pickle.dumps(choice)).names == choice.names


def test_gates_without_weights_and_without_a_draw_are_an_error():
    choice = scales(2, 3)
    with gates(choices(choice), {"choice": Gate(None, None)}), pytest.raises(SpaceError, match="drawn"):
        choice(torch.ones(1))


def test_an_edge_left_out_is_what_a_dropped_one_is():
    choice = scales(2, 3)
    choice.added = True
    with gates(choices(choice), {"choice": LEFT_OUT}):
        assert choice(torch.ones(1)) == Dropped()(torch.ones(1)) == 0
    assert [op.calls for op in choice.candidates] == [0, 0]


@pytest.mark.parametrize("candidates", [{}, {"only": nn.Identity()}])
def test_fewer_than_two_candidates_are_an_error(candidates):
    with pytest.raises(SpaceError, match=f"at least 2 candidates, got {len(candidates)}"):
        Choice(candidates)


def test_gates_are_reset_after_the_context_and_after_an_exception():
    choice = scales(2, 3)
    found = choices(choice)
    with gates(found, {"choice": Gate(None, 0)}):
        assert choice.gate is not None
    assert choice.gate is None

    def fail():
        with gates(found, {"choice": Gate(None, 0)}):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert choice.gate is None


def test_gates_are_reset_when_a_key_is_missing():
    model = nn.ModuleDict({"first": scales(2, 3), "second": scales(2, 3)})
    with pytest.raises(KeyError), gates(choices(model), {"first": Gate(None, 0)}):
        pass
    assert model["first"].gate is None


# -- pass_through


def test_pass_through_is_the_output_bit_for_bit():
    output = torch.randn(3, 4)
    gate = torch.tensor(1.0, requires_grad=True)
    assert torch.equal(pass_through(output, gate), output)


def downstream(value):
    """A function with a non-constant second derivative."""
    return (value.sin() * value**2).sum()


def operands():
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(4, dtype=torch.float64, generator=generator).requires_grad_()
    gate = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    return w, gate


def test_pass_through_has_the_gradients_of_the_multiplication():
    w, gate = operands()
    expected = torch.autograd.grad(downstream(w**3 * gate), (w, gate))
    got = torch.autograd.grad(downstream(pass_through(w**3, gate)), (w, gate))
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=0)


def test_pass_through_gradcheck_in_the_output():
    w, gate = operands()
    assert torch.autograd.gradcheck(lambda w: pass_through(w**3, gate), (w,))
    assert torch.autograd.gradgradcheck(lambda w: downstream(pass_through(w**3, gate)), (w,))


def test_gradient_in_the_gate_against_finite_differences_of_the_multiplication():
    # gradcheck cannot perturb the gate of pass_through, whose forward takes it to be 1: the product stands in.
    w, gate = operands()
    (got,) = torch.autograd.grad(downstream(pass_through(w**3, gate)), gate)
    eps = 1e-6
    with torch.no_grad():
        difference = (downstream(w**3 * (1 + eps)) - downstream(w**3 * (1 - eps))) / (2 * eps)
    assert torch.allclose(got, difference, rtol=1e-7)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("w", "w"),
        ("gate", "gate"),
        ("gate", "w"),
        ("w", "gate"),
    ],
)
def test_pass_through_has_the_second_derivatives_of_the_multiplication(first, second):
    """d/d second of <v, d loss / d first>: what a second-order search by autograd needs."""

    def second_derivative(product):
        variables = dict(zip(("w", "gate"), operands(), strict=True))
        loss = downstream(product(variables["w"] ** 3, variables["gate"]))
        (gradient,) = torch.autograd.grad(loss, variables[first], create_graph=True)
        v = torch.arange(1.0, 1.0 + gradient.numel(), dtype=torch.float64).view_as(gradient)
        return torch.autograd.grad((gradient * v).sum(), variables[second])[0]

    expected = second_derivative(lambda output, gate: output * gate)
    assert torch.allclose(second_derivative(pass_through), expected, rtol=1e-10)


# -- what is written in place


def add_in_place(output, x):
    output += x
    return output


# What follows a choice, and the same without writing into anything.
AFTER = {
    "relu": (lambda output, x: output.relu_(), lambda output, x: output.relu()),
    "add": (add_in_place, lambda output, x: output + x),
    "a part": (lambda output, x: output[:, ::2].mul_(3), lambda output, x: output[:, ::2] * 3),
    "nothing": (lambda output, x: output * x, lambda output, x: output * x),
}


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("op", [nn.Linear(4, 4), nn.Identity(), nn.Tanh(), Choice({"a": nn.ELU(), "b": nn.ELU()})])
def test_what_follows_may_write_into_the_output(op, after):
    """As the product with the gate, that nobody writes into, by autograd; in the first step and in those after it."""
    in_place, apart = AFTER[after]
    model, generator = nn.ModuleDict({"c": Choice({"op": op, "other": nn.Identity()})}).double(), torch.Generator()
    found = choices(model)
    for _ in range(3):
        x = torch.randn(3, 4, dtype=torch.float64, generator=generator)
        results = []
        for dense in (False, True):
            gate, given = torch.ones((), dtype=torch.float64, requires_grad=True), x.clone().requires_grad_()
            hidden = given * 1.5
            drawn = Gate(None, 0, None if dense else HardGate(gate))
            with gates(found, dict.fromkeys(found, drawn)):
                output = model["c"](hidden)
            output = apart(output * gate * (gate if isinstance(op, Choice) else 1), x) if dense else in_place(output, x)
            output.sin().sum().backward()
            results.append((output.detach(), gate.grad, given.grad))
        for ours, theirs in zip(*results, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert model["c"].overwritten is (after != "nothing")


def test_an_output_that_nobody_writes_into_is_not_copied():
    choice = Choice({"op": nn.Linear(4, 4), "other": nn.Identity()})
    found, gate, kept = choices(choice), torch.ones((), requires_grad=True), []
    choice.candidates[0].register_forward_hook(lambda module, inputs, output: kept.append(output.data_ptr()))
    copied = []
    for _ in range(3):
        with gates(found, {"choice": Gate(None, 0, HardGate(gate))}):
            output = choice(torch.ones(2, 4))
        output.sum().backward()
        copied.append(output.data_ptr() != kept.pop())
    assert copied == [True, False, False]


class Writing(nn.Module):
    def forward(self, x):
        x *= 3
        return x.sin()


@pytest.mark.parametrize("op", [nn.ReLU(inplace=True), nn.Sequential(nn.Identity(), nn.ELU(inplace=True)), Writing()])
def test_a_candidate_may_write_into_the_output_of_a_choice_that_was_not_written_into_before(op):
    model = nn.Sequential(Choice({"a": nn.Linear(4, 4), "b": nn.Tanh()}), Choice({"plain": nn.Tanh(), "op": op}))
    found, x = choices(model), torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    for index in (0, 0, 1, 1):
        gate = torch.ones((), requires_grad=True)
        with gates(found, {"0": Gate(None, 0, HardGate(gate)), "1": Gate(None, index, HardGate(torch.ones(())))}):
            output = model(x)
        output.square().sum().backward()
        factor = torch.ones((), requires_grad=True)
        model[1].candidates[index](factor * model[0].candidates[0](x)).square().sum().backward()
        assert torch.allclose(gate.grad, factor.grad)


def test_a_candidate_that_did_not_write_in_evaluation_mode_may_write_in_training_mode():
    dropout = nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Tanh())
    model = nn.Sequential(Choice({"a": nn.Linear(4, 4), "b": nn.Tanh()}), Choice({"plain": nn.Tanh(), "op": dropout}))
    for training, index in ((True, 0), (False, 1), (True, 1)):
        gate = torch.ones((), requires_grad=True)
        drawn = {"0": Gate(None, 0, HardGate(gate)), "1": Gate(None, index, HardGate(torch.ones(())))}
        with gates(choices(model), drawn):
            model.train(training)(torch.ones(3, 4)).sum().backward()
        assert gate.grad is not None


BEGINS_IN_PLACE = {
    "relu": nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)),
    "nested": nn.Sequential(nn.Identity(), nn.Sequential(nn.Dropout(0.0, inplace=True), nn.ELU(inplace=True))),
    "choice": Choice({"a": nn.ReLU(inplace=True), "b": nn.ReLU(inplace=True)}),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", BEGINS_IN_PLACE)
def test_candidates_that_run_side_by_side_get_the_same_input(name, first):
    op = BEGINS_IN_PLACE[name]
    both = [(name, op), ("same", nn.Identity())]
    model = nn.ModuleDict({"c": Choice(dict(both if first else both[::-1]))})
    found, x = choices(model), torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    hidden, weight = x * 1, torch.tensor(0.5)
    with gates(found, dict.fromkeys(found, Gate((weight, weight), None))):
        mixed = model["c"](hidden)
        expected = 0.5 * op(x.clone()) + 0.5 * x
    assert torch.equal(hidden, x)
    assert torch.allclose(mixed, expected)


def test_a_candidate_that_writes_into_the_input_of_others_is_named():
    class Clamp(nn.Module):
        def forward(self, xs):
            return xs[0].clamp_(min=0)

    class First(nn.Module):
        def forward(self, xs):
            return xs[0]

    choice = Choice({"clamp": Clamp(), "first": First()})
    found = choices(choice)
    with gates(found, {"choice": Gate(row(0.5, 0.5), None)}), pytest.raises(SpaceError) as caught:
        choice([torch.randn(3)])
    assert str(caught.value) == (
        "candidate 'clamp' of a Choice between clamp, first writes into its input, which the others run on as well; "
        "let it begin with something that is not done in place"
    )
    with gates(found, {"choice": Gate(None, 0)}):
        assert (choice([torch.tensor([-1.0])]) == 0).all()  # alone it may


# -- keys


def test_equal_keys_share_one_entry_in_module_order():
    model = nn.Sequential(scales(2, 3, key="k"), scales(2, 3, key="other"), scales(2, 3, key="k"))
    found = choices(model)
    assert list(found) == ["k", "other"]
    assert found["k"] == [model[0], model[2]]
    with gates(found, {"k": Gate(None, 1), "other": Gate(None, 0)}):
        assert model(torch.ones(1)).item() == 3 * 2 * 3


def test_a_choice_without_a_key_is_known_by_its_path():
    model = nn.ModuleDict({"head": scales(2, 3), "body": nn.Sequential(nn.Identity(), scales(2, 3))})
    assert list(choices(model)) == ["head", "body.1"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (scales(2, 3, key="k"), scales(2, 4, key="k")),
        (scales(2, 3, key="k"), scales(3, 2, key="k")),
        (scales(2, 3, key="k"), scales(2, 3, 4, key="k")),
        (scales(2, 3, key="k", group="g"), scales(2, 3, key="k", group="h")),
        (scales(2, 3, key="k", group="g"), scales(2, 3, key="k")),
    ],
    ids=["names", "order", "number", "group", "no group"],
)
def test_unlike_choices_under_one_key_are_an_error(one, other):
    with pytest.raises(SpaceError, match="share the key 'k'"):
        choices(nn.Sequential(one, other))


@pytest.mark.parametrize("order", ["place first", "key first"])
def test_a_place_that_is_the_key_of_another_choice_is_an_error(order):
    parts = {"act": scales(2, 3), "body": nn.Sequential(scales(2, 3, key="act"))}
    model = nn.ModuleDict(parts if order == "place first" else dict(reversed(parts.items())))
    with pytest.raises(SpaceError) as caught:
        choices(model)
    assert str(caught.value) == (
        "the choice at 'act' is known by its place, which is the key of the one at 'body.0'; give one of them another "
        "key, or both the key 'act' if they are to be decided together"
    )
    model["act"].key = "act"
    assert list(choices(model)) == ["act"]


def test_a_model_without_choices_is_an_error():
    with pytest.raises(SpaceError, match="Linear contains no Choice"):
        choices(nn.Linear(1, 1))


# -- freeze


def no_choice_left(model):
    return not any(isinstance(module, Choice) for module in model.modules())


def test_freeze_works_in_place_and_leaves_no_choice():
    model = nn.Sequential(scales(2, 3, key="a"), nn.Sequential(scales(5, 7)))
    inner = model[1]
    frozen = freeze(model, {"a": "times_3", "1.0": "times_5"})
    assert frozen is model
    assert frozen[1] is inner
    assert no_choice_left(frozen)
    assert frozen(torch.ones(1)).item() == 15


def test_freeze_keeps_the_chosen_module_itself():
    model = nn.Sequential(scales(2, 3))
    chosen = model[0].candidates[1]
    assert freeze(model, {"0": "times_3"})[0] is chosen


def test_freeze_of_a_choice_at_the_root_returns_the_candidate():
    choice = scales(2, 3)
    assert freeze(choice, {"choice": "times_3"}) is choice.candidates[1]


def test_freeze_of_nested_choices():
    inner = Choice({"x": nn.Sequential(scales(2, 3)), "y": Scale(5)})
    model = nn.Sequential(Choice({"inner": inner, "plain": Scale(7)}))
    keys = ["0", "0.candidates.0", "0.candidates.0.candidates.0.0"]
    assert list(choices(model)) == keys
    frozen = freeze(model, dict(zip(keys, ("inner", "x", "times_3"), strict=True)))
    assert no_choice_left(frozen)
    assert frozen(torch.ones(1)).item() == 3


def test_freeze_of_an_edge_that_was_dropped():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = scales(2, 3, added=True), scales(5, 7)

        def forward(self, x):
            return self.left(x) + self.right(x)

    model = freeze(Sum(), {"left": None, "right": "times_5"})
    assert isinstance(model.left, Dropped)
    assert no_choice_left(model)
    assert model(torch.ones(1)).item() == 5


@pytest.mark.parametrize("name", ["conv.3x3", "type", "keys", "forward", "", "a/b", "."])
def test_candidate_names_may_be_anything(name):
    model = nn.Sequential(Choice({name: Scale(2), "other": Scale(3)}))
    with gates(choices(model), {"0": Gate(None, 0)}):
        assert model(torch.ones(1)).item() == 2
    assert freeze(model, {"0": name})(torch.ones(1)).item() == 2


def test_freeze_of_one_choice_that_is_used_twice():
    shared = scales(2, 3)
    model = nn.Sequential(shared, shared)
    frozen = freeze(model, {"0": "times_3"})
    assert no_choice_left(frozen)
    assert frozen(torch.ones(1)).item() == 9


@pytest.mark.parametrize("training", [True, False])
def test_a_frozen_network_gives_the_output_of_the_supernet_bit_for_bit(space, spec, training):
    supernet = space.supernet(spec).train(training)
    found = choices(supernet)
    draw = torch.Generator().manual_seed(5)
    indices = {key: int(torch.randint(len(c[0].names), (), generator=draw)) for key, c in found.items()}
    one_hot = {key: Gate(None, k, HardGate(torch.ones(()))) for key, k in indices.items()}
    images = torch.randn(4, *spec.input_shape, generator=draw)
    with torch.no_grad():
        with gates(found, one_hot):
            expected = supernet(images)
        frozen = freeze(supernet, {key: found[key][0].names[k] for key, k in indices.items()})
        assert frozen is supernet
        assert no_choice_left(frozen)
        assert torch.equal(frozen(images), expected)


# -- check_chosen

OPTIONS = {"a": ("x", "y"), "b": ("x", "z")}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"a": "x"}, "lacks b.*expected exactly the 2 choices"),
        ({"a": "x", "b": "z", "c": "x"}, "has unknown c"),
        ({"a": "x", "c": "x", "d": None}, "lacks b and has unknown c, d"),
        ({}, "lacks a, b"),
        ({"a": "z", "b": "z"}, "'z' at a, expected one of x, y"),
    ],
)
def test_check_chosen_says_what_does_not_fit(chosen, message):
    with pytest.raises(GenotypeError, match=message):
        check_chosen(chosen, OPTIONS)


def test_check_chosen_accepts_what_fits():
    check_chosen({"b": "z", "a": None}, OPTIONS)


def test_freeze_changes_nothing_when_the_genotype_does_not_fit():
    model = nn.Sequential(scales(2, 3), scales(2, 3))
    with pytest.raises(GenotypeError):
        freeze(model, {"0": "times_2", "1": "times_5"})
    assert list(choices(model)) == ["0", "1"]
