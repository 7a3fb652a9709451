import dataclasses
import math

import pytest
import torch
from torch import nn

from nas.data.spec import DataSpec
from nas.spaces.darts import PUBLISHED
from nas.supernet.genotype import Genotype
from nas.supernet.mac_counter import MacCounter, recurrent
from nas.training.evaluate import count_macs, count_parameters, macs_or_reason, score
from nas.training.metrics import ClassificationMeasures
from nas.training.task import Classification, Custom, Regression
from nas.training.trained import Trained, final_result


class Batches:
    """Stands for a loader."""

    def __init__(self, *batches):
        self.batches = batches

    def epoch(self, epoch):
        return iter(self.batches)


class Table(nn.Module):
    """Scores by image: the image is its row number. Adds noise in training mode, so that score() must leave it."""

    def __init__(self, rows):
        super().__init__()
        self.rows = torch.tensor(rows)

    def forward(self, x):
        assert not self.training
        assert not torch.is_grad_enabled()
        return self.rows[x.flatten().long()]


def test_score_of_a_network_made_by_hand(spec):
    network = Table([[math.log(3.0), 0.0], [0.0, 0.0], [0.0, math.log(7.0)]]).train()
    loader = Batches(
        (torch.tensor([[0.0], [2.0]]), torch.tensor([0, 0])),  # right with p = 3/4, wrong with p = 1/8
        (torch.tensor([[2.0]]), torch.tensor([1])),  # right with p = 7/8: a smaller last batch
    )
    result = score(network, loader, Classification(), dataclasses.replace(spec, class_names=("a", "b")))
    assert result.examples == 3
    assert network.training
    assert result.measures["negative_log_likelihood"] == pytest.approx(result.loss)
    assert result.measures["confusion"] == {"a": {"a": 1, "b": 1}, "b": {"b": 1}}
    assert result.metric == pytest.approx(2 / 3)
    assert result.loss == pytest.approx(-(math.log(3 / 4) + math.log(1 / 8) + math.log(7 / 8)) / 3, rel=1e-6)


def test_sums_of_16_bits_over_a_split_do_not_stop_growing(spec):
    network, zeros = Table([[2.0]]), torch.zeros(1, 1)
    network.rows = network.rows.bfloat16()
    found = score(network, Batches(*[(zeros, zeros.bfloat16())] * 600), Regression(), spec)
    assert (found.metric, found.loss) == (2.0, 4.0)


def test_score_does_not_depend_on_the_batches(spec):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 9, 3))
    images, labels = torch.randn(10, 1, 5, 5), torch.randint(3, (10,))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    one = score(network, Batches((images, labels)), Classification(), spec)
    many = score(network, Batches(*zip(images.split(3), labels.split(3), strict=True)), Classification(), spec)
    assert one.metric == many.metric
    assert one.loss == pytest.approx(many.loss, rel=1e-5)
    numbers = ("negative_log_likelihood", "expected_calibration_error", "accuracy_interval")
    assert all(one.measures[name] == pytest.approx(many.measures[name], rel=1e-5) for name in numbers)
    assert one.measures["confusion"] == many.measures["confusion"]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_score_leaves_the_loss_as_it_was(spec):
    """So a second score is the same."""

    class Running(nn.BatchNorm1d):
        def forward(self, outputs, targets):
            super().forward(outputs)
            return self.running_var.mean()

    task = Custom(loss=Running(3), metric=lambda outputs, targets: outputs[:, 0], name="first", higher_is_better=True)
    one, again = (score(nn.Flatten(), Batches((torch.randn(4, 3), torch.zeros(4))), task, spec) for _ in range(2))
    assert task.described()["loss"].running_var.tolist() == [1, 1, 1]
    assert one.loss != 1 != again.loss


class Drifting(nn.Linear):
    """Follows the mean of its inputs in eval mode too."""

    def __init__(self):
        super().__init__(2, 2)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x):
        self.mean = 0.5 * self.mean + 0.5 * x.mean(0)
        return super().forward(x - self.mean)


def test_scores_and_counts_leave_the_buffers_of_a_network_as_they_were():
    network, loader = Drifting(), Batches((torch.ones(2, 2), torch.tensor([0, 1])))
    two = DataSpec(name="two", input_shapes=((2,),), class_names=("a", "b"))
    first, _ = score(network, loader, Classification(), two), count_macs(network, two)
    assert score(network, loader, Classification(), two).loss == first.loss
    assert not network.mean.any()


def test_the_device_is_waited_for_at_the_end_only(spec, monkeypatch):
    """And the split is passed over once."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    waiting, passes = [], []

    class Watched(Batches):
        def epoch(self, epoch):
            passes.append(epoch)
            waiting.clear()
            for name in ("__float__", "__int__", "__bool__", "__index__", "item", "tolist", "cpu"):
                read = getattr(torch.Tensor, name)
                patch.setattr(
                    torch.Tensor, name, lambda *args, name=name, read=read: (waiting.append(name), read(*args))[1]
                )
            yield from self.batches
            assert waiting == []

    with monkeypatch.context() as patch:
        score(network, Watched(*[(torch.randn(5, 1, 2, 2), torch.randint(3, (5,)))] * 3), Classification(), spec)
        assert passes == [0]
        assert waiting  # so it was seen: the results were read


@pytest.mark.parametrize(("groups", "stride", "kernel"), [(1, 1, 3), (1, 2, 3), (3, 1, 5), (3, 2, 1)])
def test_macs_of_a_convolution(groups, stride, kernel, spec):
    conv = nn.Conv2d(3, 6, kernel, stride, kernel // 2, groups=groups, bias=False)
    out = -(-8 // stride)
    assert count_macs(conv, spec) == out * out * 6 * (3 // groups) * kernel * kernel


def test_macs_of_a_linear_layer(spec):
    assert count_macs(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)), spec) == 192 * 5


class Product(nn.Module):
    def forward(self, x):
        products = x @ x[0, 0] + torch.dot(x[0, 0], x[0, 1])
        return torch.addmv(products[0], x[0], x[0, 0]) + torch.addbmm(x[0] @ x[0].T, x, x.mT)


@pytest.mark.parametrize(
    ("make", "inputs", "expected"),
    [
        (
            lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            1,
            5 * 8 * 32 + 2 * 5 * 5 * 8 + 2 * 5 * 8 * 16,
        ),
        (lambda: nn.MultiheadAttention(8, 2, batch_first=True), 3, 5 * 8 * 32 + 2 * 5 * 5 * 8),
        (lambda: nn.LSTM(8, 6, batch_first=True), 1, 5 * 4 * 6 * (8 + 6)),
        (lambda: nn.GRU(8, 6, batch_first=True), 1, 5 * 3 * 6 * (8 + 6)),
        (lambda: nn.Bilinear(8, 8, 4), 2, 5 * 4 * 8 * 8),
        (Product, 1, 5 * 8 + 8 + 5 * 8 + 2 * 5 * 5 * 8),
    ],
)
def test_macs_of_layers_that_torch_takes_for_free(make, inputs, expected):
    with MacCounter() as counter, torch.no_grad():
        make().eval()(*[torch.randn(1, 5, 8)] * inputs)
    assert counter.total == expected
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("batch", [1, 3])
def test_macs_of_recurrent_layers_on_a_gpu_are_those_of_their_matrices(batch):
    weights = [torch.Size([24, 8]), torch.Size([24, 6]), torch.Size([24]), torch.Size([24])]
    assert recurrent(torch.Size([5, batch, 8]), weights) == 2 * batch * 5 * 24 * (8 + 6)


def test_macs_of_a_published_network(nas_bench_201, spec):
    """All skips: stem, two residual reductions, classifier; at C = 4 and 8 x 8 by hand."""
    genotype = Genotype("nas_bench_201", dict.fromkeys(nas_bench_201.options(spec), "skip_connect"))
    stem = 64 * 4 * 3 * 9
    first = 16 * 8 * 4 * 9 + 16 * 8 * 8 * 9 + 16 * 8 * 4
    second = 4 * 16 * 8 * 9 + 4 * 16 * 16 * 9 + 4 * 16 * 8
    assert count_macs(nas_bench_201.network(spec, genotype), spec) == stem + first + second + 16 * 3


def test_parameters_leave_out_the_auxiliary_head_and_what_is_not_trained(darts, spec):
    large = dataclasses.replace(spec, input_shapes=((3, 32, 32),))
    with torch.device("meta"):
        plain = darts.network(large, PUBLISHED["DARTS_V2"])
        auxiliary = darts.resized({"auxiliary": True}).network(large, PUBLISHED["DARTS_V2"])
    assert count_parameters(auxiliary) == count_parameters(plain) == sum(p.numel() for p in plain.parameters())
    assert sum(p.numel() for p in auxiliary.parameters()) > count_parameters(plain)
    linear = nn.Linear(3, 2)
    linear.bias.requires_grad_(False)
    assert count_parameters(linear) == 6
    assert count_parameters(nn.ModuleDict({"auxiliary": linear})) == 6  # of a user's own model, used in inference


def test_macs_leave_out_the_auxiliary_head(darts, spec):
    large = dataclasses.replace(spec, input_shapes=((3, 32, 32),))
    plain = darts.network(large, PUBLISHED["DARTS_V2"])
    auxiliary = darts.resized({"auxiliary": True}).network(large, PUBLISHED["DARTS_V2"]).train()
    assert count_macs(auxiliary, large) == count_macs(plain, large)


class Slope(nn.Module):
    """Returns the derivative of an energy by its input, as a model of forces does."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Linear(3 * 8 * 8, 1, bias=False)

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(x.flatten(1)).sum(), x, create_graph=True)
        return slope


def test_macs_of_a_model_that_differentiates_by_its_input(spec):
    assert count_macs(Slope(), spec) == 3 * 8 * 8 * 2  # the product, and that of its derivative


def test_macs_that_cannot_be_counted_have_a_reason(spec):
    class Never(nn.Module):
        def forward(self, x):
            raise KeyError("zeros")

    assert macs_or_reason(Never(), spec) == {"macs": None, "macs_reason": "KeyError: 'zeros'"}
    assert macs_or_reason(nn.Flatten(), spec) == {"macs": 0}


def test_measures_that_fail_cost_no_score(spec):
    class Broken:
        names = ("one", "two")

        def add(self, outputs, targets, metric):
            raise MemoryError("no\nmore")

    class Task(Classification):
        def measures(self, spec):
            return Broken()

    network, loader = (
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3)),
        Batches((torch.randn(4, 3, 8, 8), torch.arange(4) % 3)),
    )
    found, expected = (score(network, loader, task, spec) for task in (Task(), Classification()))
    assert (found.metric, found.loss, found.examples) == (expected.metric, expected.loss, expected.examples)
    assert found.measures == {"one": None, "two": None, "measures_reason": "MemoryError: no more"}


def test_the_score_is_written_before_what_else_is_measured(spec, monkeypatch):
    """So that a measurement that ends the process, as for want of memory, loses nothing."""
    spec = dataclasses.replace(spec, class_names=("a", "b"))
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    network(torch.zeros(1, *spec.input_shapes[0]))
    batch = torch.randn(4, *spec.input_shapes[0]), torch.tensor([0, 1, 0, 1])
    trained = Trained(network, Genotype("mine", {}), spec, Classification(), {})
    written = []

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ClassificationMeasures, "results", killed)
        with pytest.raises(KeyboardInterrupt):
            final_result(trained, Batches(batch), spec, write=written.append)
    (early,) = written
    assert 0 <= early["test_accuracy"] <= 1
    assert "macs" not in early
    whole = final_result(trained, Batches(batch), spec, write=written.append)
    assert written[-1] == whole
    assert {name: whole[name] for name in early} == early
    assert whole["macs"] > 0
