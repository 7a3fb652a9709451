import itertools

import custom_models
import pytest
import torch
from small_judge import Node, OneBest, arch_with, four_classes, judge_of
from torch import nn

from nas.data.spec import DataSpec
from nas.errors import ConfigError, SpaceError
from nas.methods.best_of import BestOf
from nas.methods.deriver import Argmax, JudgingDeriver, TopPredecessors
from nas.methods.hooks import decided
from nas.methods.perturbation import Perturbation
from nas.methods.supernet_score import Judge
from nas.methods.tuning import Tuning
from nas.spaces.darts import Darts
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice
from nas.supernet.genotype import check_chosen
from nas.training.evaluate import Score
from nas.training.task import Classification, Metric, Regression

OPS = ("none", "skip", "conv", "pool")


def arch_of(rows, groups=None):
    """rows: key -> {candidate: probability}, summing to 1; groups: key -> group."""
    model = nn.Sequential(
        *(
            Choice({name: nn.Identity() for name in probs}, key=key, group=(groups or {}).get(key))
            for key, probs in rows.items()
        )
    )
    arch = ArchParams.from_model(model)
    with torch.no_grad():
        for row, probs in zip(arch.logits, rows.values(), strict=True):
            row[: len(probs)] = torch.tensor(list(probs.values())).log()
    return arch


def probs(*values):
    return dict(zip(OPS, values, strict=True))


# -- argmax


def test_argmax_of_every_choice():
    arch = arch_of({"a": probs(0.1, 0.2, 0.4, 0.3), "b": {"x": 0.3, "y": 0.7}, "c": probs(0.7, 0.1, 0.1, 0.1)})
    assert Argmax()(arch) == {"a": "conv", "b": "y", "c": "none"}


def test_argmax_excludes():
    arch = arch_of({"a": probs(0.7, 0.1, 0.05, 0.15), "b": {"x": 0.3, "y": 0.7}})
    assert Argmax(exclude=["none"])(arch) == {"a": "pool", "b": "y"}
    assert Argmax(exclude=["none", "pool"])(arch) == {"a": "skip", "b": "y"}


def test_padding_is_never_derived():
    # Excluding the real favourite must not fall through to the padding of a shorter row.
    arch = arch_of({"wide": probs(0.25, 0.25, 0.25, 0.25), "narrow": {"x": 0.999, "y": 0.001}})
    assert Argmax(exclude=["x"])(arch)["narrow"] == "y"


@pytest.mark.parametrize("deriver", [Argmax(exclude=OPS), TopPredecessors(exclude=OPS)])
def test_excluding_everything_is_an_error(deriver):
    arch = arch_of({"a": probs(0.25, 0.25, 0.25, 0.25)}, {"a": "g"})
    with pytest.raises(ConfigError, match=r"deriver\.exclude leaves none of the candidates none, skip, conv, pool"):
        deriver(arch)


# -- top predecessors


def groups_of(*keys):
    return {key: f"normal/{key[-1]}" for key in keys}


def test_the_two_strongest_edges_of_every_node():
    rows = {
        "0-2": probs(0.10, 0.50, 0.20, 0.20),
        "1-2": probs(0.10, 0.20, 0.60, 0.10),
        "0-3": probs(0.10, 0.40, 0.30, 0.20),
        "1-3": probs(0.10, 0.20, 0.20, 0.50),
        "2-3": probs(0.10, 0.15, 0.60, 0.15),
    }
    assert TopPredecessors()(arch_of(rows, groups_of(*rows))) == {
        "0-2": "skip",
        "1-2": "conv",
        "0-3": None,
        "1-3": "pool",
        "2-3": "conv",
    }


def test_none_has_the_largest_probability_everywhere():
    """`none` is never derived, but takes its share: an edge is as strong as its best other operation, measured over
    all operations. Renormalising without `none` would prefer 0-3 (0.1/0.15) to 1-3 (0.3/0.7)."""
    rows = {
        "0-3": probs(0.85, 0.10, 0.03, 0.02),
        "1-3": probs(0.30, 0.20, 0.20, 0.30),
        "2-3": probs(0.50, 0.05, 0.40, 0.05),
    }
    assert TopPredecessors()(arch_of(rows, groups_of(*rows))) == {"0-3": None, "1-3": "pool", "2-3": "conv"}


def test_two_different_predecessors_even_if_one_edge_has_the_two_best_operations():
    rows = {
        "0-3": probs(0.02, 0.49, 0.48, 0.01),
        "1-3": probs(0.30, 0.30, 0.20, 0.20),
        "2-3": probs(0.70, 0.10, 0.10, 0.10),
    }
    assert TopPredecessors()(arch_of(rows, groups_of(*rows))) == {"0-3": "skip", "1-3": "skip", "2-3": None}


def test_choices_without_a_group_are_kept():
    rows = {key: probs(0.1, 0.2, 0.3, 0.4) for key in ("0-3", "1-3", "2-3", "head")}
    derived = TopPredecessors()(arch_of(rows, groups_of("0-3", "1-3", "2-3")))
    assert derived["head"] == "pool"
    assert list(derived.values()).count(None) == 1


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 2), (3, 3), (9, 3)])
def test_count(count, kept):
    rows = {key: probs(0.1, 0.2, 0.3, 0.4) for key in ("0-3", "1-3", "2-3")}
    derived = TopPredecessors(count=count)(arch_of(rows, groups_of(*rows)))
    assert sum(name is not None for name in derived.values()) == kept


def test_count_below_one():
    with pytest.raises(ConfigError, match=r"deriver\.count must be at least 1, got 0"):
        TopPredecessors(count=0)


def test_a_space_without_groups_is_an_error():
    with pytest.raises(SpaceError, match=r"without any; use deriver=argmax"):
        TopPredecessors()(arch_of({"a": probs(0.25, 0.25, 0.25, 0.25)}))


# -- both


def test_ties_go_to_the_first():
    rows = {key: probs(0.25, 0.25, 0.25, 0.25) for key in ("0-3", "1-3", "2-3")}
    for _ in range(3):
        arch = arch_of(rows, groups_of(*rows))
        assert Argmax()(arch) == dict.fromkeys(rows, "none")
        assert TopPredecessors()(arch) == {"0-3": "skip", "1-3": "skip", "2-3": None}


@pytest.mark.parametrize("deriver", [Argmax(), Argmax(exclude=["none"]), TopPredecessors()])
def test_what_is_derived_fits_the_spaces_that_ship(deriver, space, spec):
    arch = ArchParams.from_model(space.supernet(spec), init_std=1.0)
    derived = deriver(arch)
    check_chosen(derived, space.options(spec))
    if isinstance(deriver, TopPredecessors):
        for group in set(arch.groups.values()):
            members = [key for key, of in arch.groups.items() if of == group]
            assert sum(derived[key] is not None for key in members) == min(2, len(members))
            assert "none" not in {derived[key] for key in members}


# -- derivers that look at data


def strict(**arguments):
    """Perturbation by the stricter rules on a few batches, without tuning unless that is asked for."""
    settings = {"rules": "strict", "batches": 4, "tune_epochs": 0, "tune_logits": False, "tune_weight_decay": 0.0}
    return Perturbation(**{**settings, "tune_grad_clip": 0.0, **arguments})


JUDGING = [BestOf(samples=64), strict()]
both = pytest.mark.parametrize("deriver", JUDGING, ids=["best_of", "perturbation"])


@both
def test_the_best_operation_is_found_where_the_logits_are_misled(deriver):
    supernet = OneBest()
    arch = arch_with(supernet, op=[0.5, 1.0, 0.0])
    assert Argmax()(arch) == deriver(arch) == {"op": "wrong"}
    assert deriver.judged(arch, judge_of(supernet, *four_classes(), classes=4)) == {"op": "right"}


@pytest.mark.parametrize("deriver", [BestOf(samples=64, count=2), strict(count=2)], ids=["best_of", "perturb"])
def test_the_edges_that_are_needed_are_found_where_the_logits_prefer_another(deriver):
    supernet = Node()
    arch = arch_with(supernet, low=[0.0, 0.1], high=[0.0, 0.0], idle=[0.0, 1.0])
    assert TopPredecessors()(arch) == deriver(arch) == {"low": "use", "high": None, "idle": "use"}
    expected = {"low": "use", "high": "use", "idle": None}
    assert deriver.judged(arch, judge_of(supernet, *four_classes(), classes=4)) == expected


@both
def test_a_comparison_of_losses_that_are_nan_is_said(deriver, capsys):
    supernet, (inputs, targets) = OneBest(), four_classes()
    arch = arch_with(supernet, op=[0.5, 1.0, 0.0])
    for factor, count in ((1.0, 0), (torch.nan, 1)):
        decided(deriver, arch, lambda batches, by=factor: judge_of(supernet, inputs * by, targets, classes=4))
        said = capsys.readouterr().err
        assert said.count("warning: the losses of all 3 networks that the deriver compared are NaN") == count


def test_without_a_count_every_edge_is_kept():
    supernet = Node()
    arch = arch_with(supernet, low=[1.0, 0.0], high=[1.0, 0.0], idle=[0.0, 1.0])
    for deriver in JUDGING:
        chosen = deriver.judged(arch, judge_of(supernet, *four_classes(), classes=4))
        assert (chosen["low"], chosen["high"]) == ("use", "use")
        assert None not in chosen.values()


def test_perturbation_in_closed_form():
    """One example, regression: weights p_k on constants c_k give sum p_k c_k; without k the others keep their weights.

    Removing c_k leaves the error |target - sum + p_k c_k|, whatever the logits prefer.
    """

    class Constant(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, x):
            return 0 * x + self.value

    constants, target = [1.0, -2.0, 4.0, 0.5], 2.0
    supernet = Choice({str(value): Constant(value) for value in constants}, key="op")
    probs = [0.4, 0.3, 0.2, 0.1]
    arch = arch_with(supernet, op=torch.tensor(probs).log().tolist())
    mixed = sum(p * c for p, c in zip(probs, constants, strict=True))
    errors = [abs(target - mixed + p * c) for p, c in zip(probs, constants, strict=True)]
    expected = str(constants[errors.index(max(errors))])
    judge = judge_of(supernet, torch.zeros(8), torch.full((8,), target), classes=0, task=Regression())
    assert strict().judged(arch, judge) == {"op": expected} == {"op": "4.0"}


class LowerIsBetter(Classification):
    """The share of mistakes."""

    metric = Metric("error", higher_is_better=False)

    def measure(self, outputs, targets):
        return 1 - super().measure(outputs, targets).float()


@both
def test_a_metric_of_which_less_is_better(deriver):
    supernet = OneBest()
    arch = arch_with(supernet, op=[0.5, 1.0, 0.0])
    judge = judge_of(supernet, *four_classes(), classes=4, task=LowerIsBetter())
    assert deriver.judged(arch, judge) == {"op": "right"}


def test_best_of_draws_from_the_logits_what_is_not_excluded():
    """Gumbel-max: chi-square of 4,000 draws against softmax(logits) over the two candidates that are left."""
    arch = arch_of({"op": {"a": 0.5, "b": 0.3, "none": 0.2}})
    deriver = BestOf(samples=4000, exclude=["none"])
    drawn = [deriver.rule(one)["op"] for one in deriver._perturbations(arch, torch.Generator().manual_seed(0))]
    expected = {"a": 0.5 / 0.8 * 4000, "b": 0.3 / 0.8 * 4000}
    assert set(drawn) == set(expected)
    statistic = sum((drawn.count(name) - count) ** 2 / count for name, count in expected.items())
    assert statistic < 10.83  # p = 0.001 at one degree of freedom


def test_best_of_is_never_worse_than_the_logits_and_scores_nothing_twice():
    supernet = OneBest()
    arch = arch_with(supernet, op=[0.0, 0.0, 30.0])  # every draw is the same
    judge = judge_of(supernet, *four_classes(), classes=4)
    scored, decided = [], judge.decided
    judge.decided = lambda chosen, **arguments: scored.append(chosen) or decided(chosen, **arguments)
    assert BestOf(samples=20).judged(arch, judge) == {"op": "right"}
    assert scored == [{"op": "right"}]


class Ranked:
    """A judge to whom the candidates of one choice have a fixed order, but for a lucky one on few batches."""

    merit = staticmethod(lambda score: (score.metric, -score.loss))

    def __init__(self, order, *, lucky=None):
        self.order, self.lucky, self.asked = order, lucky, []

    def generator(self):
        return torch.Generator().manual_seed(0)

    def decided(self, chosen, *, recalibrated, batches):
        self.asked.append(batches)
        rank = self.order.index(chosen["op"])
        if chosen["op"] == self.lucky and batches < 8:
            rank = -1
        return Score(metric=-rank, loss=-rank, examples=batches)


@pytest.mark.parametrize(("by", "best"), [("metric", "a"), ("loss", "h")])
def test_halving_asks_half_of_the_architectures_on_twice_the_batches(by, best):
    names = "abcdefgh"
    arch = arch_of({"op": dict.fromkeys(names, 1 / 8)})
    judge = Ranked(names)
    assert BestOf(samples=200, batches=8, rounds=4, by=by).judged(arch, judge) == {"op": best}
    assert judge.asked == [1] * 8 + [2] * 4 + [4] * 2 + [8]
    lucky = Ranked(names, lucky="e")  # as it is one of the first half, it comes to the round that finds out
    assert BestOf(samples=200, batches=8, rounds=2).judged(arch, lucky) == {"op": "a"}


def test_halving_keeps_the_larger_half():
    arch = arch_of({"op": dict.fromkeys("abcde", 0.2)})
    judge = Ranked("edcba")
    assert BestOf(samples=200, batches=4, rounds=3).judged(arch, judge) == {"op": "e"}
    assert judge.asked == [1] * 5 + [2] * 3 + [4] * 2


@pytest.mark.parametrize("deriver", [BestOf(exclude=["right"]), strict(exclude=["right"])])
def test_what_is_excluded_is_not_derived_however_good_it_is(deriver):
    supernet = OneBest()
    arch = arch_with(supernet, op=[0.0, 0.5, 1.0])
    assert deriver.judged(arch, judge_of(supernet, *four_classes(), classes=4)) == {"op": "none"}


def test_ties_go_to_what_the_logits_prefer_then_to_the_first():
    supernet = Choice({name: nn.Identity() for name in "abc"}, key="op")
    inputs, labels = four_classes()
    for logits, first in (([0.0, 0.0, 0.0], "a"), ([0.0, 1.0, 1.0], "b")):
        arch = arch_with(supernet, op=logits)
        # The scores are all 0: without bit 0 or 1 it is the same.
        judge = judge_of(supernet, 0 * inputs.repeat(1, 2), labels, classes=4)
        for deriver in JUDGING:
            assert deriver.judged(arch, judge) == {"op": first}


def test_of_edges_that_do_not_matter_the_last_goes():
    rows = {key: probs(0.25, 0.25, 0.25, 0.25) for key in ("0-3", "1-3", "2-3")}

    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.edges = nn.ModuleList(
                Choice({name: nn.Identity() for name in OPS}, key=key, group="node/3") for key in rows
            )

        def forward(self, x):
            return 0 * sum(edge(x) for edge in self.edges)

    supernet = Same()
    judge = judge_of(supernet, torch.ones(32, 4), four_classes()[1], classes=4)
    derived = strict(count=2, exclude=["none"]).judged(ArchParams.from_model(supernet, init_std=0.0), judge)
    assert derived == {"0-3": "skip", "1-3": "skip", "2-3": None}


def test_tuning_lets_the_weights_catch_up_and_puts_them_back(monkeypatch):
    """The operation that stands in for the right one is untrained: tuning trains it, and nothing of that stays."""
    supernet = Node()
    arch = arch_with(supernet, low=[0.0, 0.0], high=[0.0, 0.0], idle=[0.0, 0.0])
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    judge = judge_of(supernet, *four_classes(), classes=4)
    tuned, run = [], Tuning.run

    def watch(self, decided, **arguments):
        run(self, decided, **arguments)
        tuned.append(any(not torch.equal(before[name], value) for name, value in supernet.state_dict().items()))

    monkeypatch.setattr(Tuning, "run", watch)
    chosen = strict(count=2, tune_steps=2, tune_lr=0.1).judged(arch, judge)
    assert tuned == [True] * 3  # after each of three choices; nothing is decided after the node
    assert sum(name is not None for name in chosen.values()) == 2
    assert all(torch.equal(before[name], value) for name, value in supernet.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in supernet.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BestOf(samples=0), r"deriver\.samples must be at least 1, got 0"),
        (lambda: BestOf(batches=0), r"deriver\.batches must be at least 1, got 0"),
        (lambda: BestOf(count=0), r"deriver\.count must be at least 1, got 0"),
        (lambda: BestOf(rounds=0), r"deriver\.rounds must be at least 1, got 0; set deriver\.rounds=1"),
        (lambda: BestOf(rounds=4), r"deriver\.batches must be at least 2\^\(rounds - 1\) = 8, got 4"),
        (lambda: BestOf(by="accuracy"), r"deriver\.by must be one of metric, loss, got 'accuracy'"),
        (lambda: Perturbation(batches=0), r"deriver\.batches must be at least 1, got 0"),
        (lambda: Perturbation(tune_steps=-1), r"deriver\.tune_steps must be >= 0"),
        (lambda: Perturbation(tune_lr=0.0), r"deriver\.tune_lr must be > 0"),
        (lambda: Perturbation(tune_epochs=-1), r"deriver\.tune_epochs must be >= 0"),
        (lambda: Perturbation(tune_momentum=-1.0), r"deriver\.tune_momentum must be >= 0"),
        (lambda: Perturbation(rules="ours"), r"deriver\.rules must be one of published, strict, got 'ours'"),
    ],
)
def test_settings_that_cannot_work(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@both
def test_excluding_everything_is_an_error_of_judging_derivers_too(deriver):
    arch = arch_of({"a": probs(0.25, 0.25, 0.25, 0.25)})
    with pytest.raises(ConfigError, match=r"deriver\.exclude leaves none"):
        type(deriver)(exclude=OPS)(arch)


def test_only_what_looks_at_data_is_a_judging_deriver():
    assert all(isinstance(deriver, JudgingDeriver) for deriver in JUDGING)
    assert not any(isinstance(deriver, JudgingDeriver) for deriver in (Argmax(), TopPredecessors(), lambda arch: {}))


@pytest.mark.parametrize("make", [BestOf, strict])
@pytest.mark.parametrize("name", ["nas_bench_201", "darts"])
def test_what_is_judged_fits_the_spaces_that_ship(make, name, nas_bench_201, ops_tables, spec):
    space = {"nas_bench_201": nas_bench_201, "darts": Darts(ops=ops_tables["s3"], channels=4, cells=3, steps=3)}[name]
    count = 2 if space.name == "darts" else None
    deriver = make(batches=1, count=count, exclude=["none"], **({"samples": 2} if make is BestOf else {}))
    supernet = space.supernet(spec)
    arch = ArchParams.from_model(supernet, init_std=1.0)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8) % 3
    judge = judge_of(supernet, images, labels, classes=3, batches=1)
    derived = deriver.judged(arch, judge)
    check_chosen(derived, space.options(spec))
    assert deriver.judged(arch, judge) == derived  # the same every time
    assert "none" not in derived.values()
    for _, members in itertools.groupby(sorted(arch.groups, key=arch.groups.get), key=arch.groups.get):
        kept = [derived[key] for key in members if derived[key] is not None]
        assert count is None or len(kept) == 2


@both
def test_choices_inside_of_choices(deriver):
    supernet = custom_models.nested(num_classes=4, in_channels=3, affine=False)
    arch = ArchParams.from_model(supernet, init_std=1.0)
    judge = judge_of(supernet, torch.randn(16, 3, 6, 6), torch.arange(16) % 4, classes=4, batches=1)
    check_chosen(deriver.judged(arch, judge), arch.candidates)


@both
def test_several_inputs_and_a_regression(deriver):
    pairs, _ = custom_models.pairs()

    class Batches:
        def __len__(self):
            return 1

        def epoch(self, epoch, *, start=0):
            inputs = tuple(torch.stack(column) for column in zip(*(pairs[i][0] for i in range(16)), strict=True))
            yield inputs, torch.tensor([pairs[i][1] for i in range(16)])

    spec = DataSpec(name="pairs", input_shapes=((3,), (4,)), input_dtypes=("float32", "int64"))
    supernet = custom_models.TwoInputs(spec)
    judge = Judge(
        supernet=supernet, task=Regression(), weight_loader=Batches(), validation_loader=Batches(), batches=1, seed=0
    )
    arch = ArchParams.from_model(supernet, init_std=1.0)
    chosen = deriver.judged(arch, judge)
    check_chosen(chosen, arch.candidates)
    if isinstance(deriver, BestOf):
        every = [dict(zip(arch.keys, names, strict=True)) for names in itertools.product(*arch.candidates.values())]
        errors = [judge.decided(one, recalibrated=True).metric for one in every]
        # 64 draws reach all six architectures.
        assert judge.decided(chosen, recalibrated=True).metric == min(errors)
