import functools

import pytest
import torch
from torch import nn

from nas.errors import SpaceError
from nas.spaces.nas_bench_201 import NasBench201
from nas.spaces.ops import Zero, skip_connect
from nas.supernet.choice import Choice
from nas.supernet.shape_check import check_shapes


class Counted(nn.Module):
    """Keeps or halves the length, and counts its calls."""

    def __init__(self, stride=1):
        super().__init__()
        self.stride = stride
        self.calls = 0

    def forward(self, x, *, scale=1.0):
        self.calls += 1
        return scale * x[:, :: self.stride]


def test_every_candidate_runs_and_those_of_choices_inside_of_them():
    inner = Choice({"c": Counted(), "d": Counted()})
    model = nn.Sequential(Choice({"a": Counted(), "b": nn.Sequential(Counted(), inner)}))
    output = check_shapes(model, torch.ones(2, 6))
    assert output.shape == (2, 6)
    assert all(module.calls > 0 for module in model.modules() if isinstance(module, Counted))


def test_the_choice_is_named_by_its_path_with_both_shapes():
    inner = Choice({"c": Counted(), "d": Counted(2)}, key="k")
    model = nn.Sequential(nn.Identity(), nn.ModuleDict({"x": Choice({"a": Counted(), "b": nn.Sequential(inner)})})["x"])
    with pytest.raises(SpaceError) as caught:
        check_shapes(model, torch.ones(2, 6))
    assert str(caught.value) == (
        "the candidates of the choice at '1.candidates.1.0' return outputs of different shapes: c (2, 6), d (2, 3); "
        "make the shapes equal, by padding, striding or a 1x1 convolution"
    )


def test_shapes_that_would_broadcast_are_different():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean(1, keepdim=True)

    with pytest.raises(SpaceError, match=r"a \(2, 6\), b \(2, 1\)"):
        check_shapes(nn.Sequential(Choice({"a": Counted(), "b": Mean()})), torch.ones(2, 6))


def test_a_choice_that_is_used_twice_is_checked_at_both_places():
    """Alike on an even length, different on an odd one."""

    class Half(nn.Module):
        def __init__(self, up):
            super().__init__()
            self.up = up

        def forward(self, x):
            return x[:, : (x.shape[1] + self.up) // 2]

    choice = Choice({"down": Half(0), "up": Half(1)})
    check_shapes(choice, torch.ones(2, 4))
    with pytest.raises(SpaceError, match=r"down \(2, 1\), up \(2, 2\)"):
        check_shapes(nn.Sequential(choice, choice), torch.ones(2, 6))


def test_several_inputs_and_named_ones():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = Choice({"a": Counted(), "b": Counted()})

        def forward(self, a, b):
            return self.left(a, scale=2.0) + b

    assert check_shapes(Model(), (torch.ones(1, 2), torch.ones(1, 2))).tolist() == [[3.0, 3.0]]


@pytest.mark.parametrize("valid", [True, False])
def test_the_model_is_left_as_it_was(valid):
    norm = nn.BatchNorm1d(6).eval()
    model = nn.Sequential(nn.BatchNorm1d(6), norm, Choice({"a": Counted(), "b": Counted(1 if valid else 2)})).train()
    norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    if valid:
        check_shapes(model, torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
    else:
        with pytest.raises(SpaceError):
            check_shapes(model, torch.ones(4, 6))
    assert model.training
    assert not norm.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert model[2].gate is None
    calls = model[2].candidates[0].calls
    with pytest.raises(SpaceError, match="without gates"):
        model(torch.ones(4, 6))
    assert model[2].candidates[0].calls == calls  # nothing looks on any more


def test_every_candidate_of_the_spaces_that_ship(space, spec):
    assert check_shapes(space.supernet(spec), torch.zeros(2, *spec.input_shape)).shape == (2, spec.num_classes)


class Rewriting(nn.Module):
    """Writes into the output of its choice. again: whether it needs the input of the choice afterwards."""

    def __init__(self, again, name="skip", act=torch.relu_):
        super().__init__()
        self.again, self.choice, self.act = again, Choice({"linear": nn.Linear(6, 6), name: nn.Identity()}), act

    def forward(self, x):
        x = x - 1
        after = self.act(self.choice(x))
        return after + x if self.again else after


def test_a_candidate_that_returns_an_input_that_is_written_into_and_needed_again_is_refused():
    with pytest.raises(SpaceError) as caught:
        check_shapes(nn.Sequential(Rewriting(again=True)), torch.zeros(2, 6))
    assert str(caught.value) == (
        "the candidate 'skip' of the choice at '0.choice' returns its input, and the model writes into it later, "
        "though it needs the input again; let what follows not work in place, or let the candidate return a copy: "
        "x.clone()"
    )
    check_shapes(nn.Sequential(Rewriting(again=False)), torch.zeros(2, 6))
    inner = Rewriting(again=True)
    with pytest.raises(SpaceError, match=r"^the candidate 'skip' of the choice at '0\.candidates\.1\.choice' returns"):
        check_shapes(nn.Sequential(Choice({"linear": nn.Linear(6, 6), "inner": inner})), torch.zeros(2, 6))


def test_dropout_that_writes_in_training_alone_counts():
    x, dropout = torch.full((2, 6), 2.0), functools.partial(nn.Dropout, 0.5)
    with pytest.raises(SpaceError, match=r"^the candidate 'skip' of the choice at '0\.choice' returns its input, and"):
        check_shapes(nn.Sequential(Rewriting(True, act=dropout(inplace=True))), x)
    with pytest.raises(
        SpaceError, match=r"^the candidate 'relu' of the choice at '0\.choice' writes into its input, wh"
    ):
        check_shapes(nn.Sequential(Residual(dropout(inplace=True))), x)
    check_shapes(nn.Sequential(Rewriting(True, act=dropout()), Residual(dropout())), x)
    check_shapes(nn.Sequential(Rewriting(False, act=dropout(inplace=True))), x)


class Residual(nn.Module):
    def __init__(self, relu, *, again=True):
        super().__init__()
        self.choice, self.again = (
            Choice({"linear": nn.Linear(6, 6), "relu": nn.Sequential(relu, nn.Linear(6, 6))}),
            again,
        )

    def forward(self, x):
        return self.choice(x) + (x if self.again else 0)


def test_a_candidate_that_writes_into_an_input_that_is_needed_again_is_refused(spec):
    x = torch.randn(2, 6)
    with pytest.raises(SpaceError) as caught:
        check_shapes(nn.Sequential(nn.Linear(6, 6), Residual(nn.ReLU(inplace=True))), x)
    assert str(caught.value) == (
        "the candidate 'relu' of the choice at '1.choice' writes into its input, which the model needs again; let it "
        "begin with something that is not done in place, e.g. nn.ReLU() without inplace=True"
    )
    check_shapes(nn.Sequential(nn.Linear(6, 6), Residual(nn.ReLU(inplace=True), again=False)), x)
    check_shapes(nn.Sequential(nn.Linear(6, 6), Residual(nn.ReLU())), x)
    ops = {"none": Zero, "skip": skip_connect, "conv": lambda c_in, c_out, stride, affine: nn.ReLU(inplace=True)}
    with pytest.raises(SpaceError, match=r"'conv' of the choice at '.*' writes into its input"):
        check_shapes(NasBench201(channels=2, cells=1, ops=ops).supernet(spec), torch.randn(2, *spec.input_shape))
