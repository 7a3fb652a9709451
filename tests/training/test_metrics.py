"""The measures of the final score, each compared with a computation by hand."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from nas.data.labels import IGNORED
from nas.training.metrics import (
    ClassificationMeasures,
    MetricInterval,
    Optional,
    RegressionMeasures,
    calibration_error,
    mean_interval,
    wilson_interval,
)
from nas.training.task import Classification


def classified(outputs, targets, names, *, parts=1):
    measures = ClassificationMeasures("accuracy", names)
    for some, labels in zip(outputs.tensor_split(parts), targets.tensor_split(parts), strict=True):
        measures.add(some, labels, Classification().measure(some, labels))
    return measures.results()


def scores(predicted, confidence, classes):
    """Scores whose softmax gives `confidence` to the predicted class and the rest evenly to the others."""
    probabilities = torch.full((len(predicted), classes), 0.0)
    for row, (label, p) in enumerate(zip(predicted, confidence, strict=True)):
        probabilities[row] = (1 - p) / (classes - 1)
        probabilities[row, label] = p
    return probabilities.log()


# -- intervals


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (1, 10), (813, 1017), (7, 12), (1, 1)])
def test_wilson_holds_what_is_less_than_196_standard_errors_away(successes, trials):
    low, high = wilson_interval(successes, trials)
    share = successes / trials
    assert 0 <= low <= share <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:  # by its definition: (share - p)^2 = z^2 p (1 - p) / n
            assert (share - bound) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / trials, rel=1e-5)


def test_wilson_in_numbers():
    # By hand for 8 of 10: centre (0.8 + 3.8415/20)/(1 + 0.38415), half width 1.96 sqrt(0.016 + 0.0096037)/1.38415.
    assert wilson_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 1.959964**2 / (20 + 1.959964**2)), abs=1e-6)


def test_the_interval_of_a_mean():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])  # mean 3, variance 14/3
    low, high = mean_interval(12.0, float(values.square().sum()), 4)
    assert (low + high) / 2 == pytest.approx(3.0)
    assert (high - low) / 2 == pytest.approx(1.959964 * math.sqrt(14 / 3 / 4), rel=1e-6)
    assert mean_interval(5.0, 25.0, 1) == (5.0, 5.0)


def test_the_interval_of_any_metric():
    measures = MetricInterval("error")
    for part in ([1.0, 2.0], [3.0], [6.0]):
        measures.add(torch.empty(0), torch.empty(0), torch.tensor(part))
    assert measures.results() == {"error_interval": list(mean_interval(12.0, 50.0, 4))}


# -- classification


def test_confusion_and_per_class_by_hand():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    outputs = scores([0, 0, 1, 1, 0, 2], [0.6] * 6, 4)
    results = classified(outputs, labels, "abcd", parts=2)
    assert results["confusion"] == {"a": {"a": 2, "b": 1}, "b": {"a": 1, "b": 1}, "c": {"c": 1}, "d": {}}
    assert results["per_class"] == {
        "a": {"accuracy": 2 / 3, "examples": 3},
        "b": {"accuracy": 1 / 2, "examples": 2},
        "c": {"accuracy": 1.0, "examples": 1},
        "d": {"accuracy": None, "examples": 0},
    }
    assert results["accuracy_interval"] == list(wilson_interval(4, 6))
    assert "top5_accuracy" not in results  # of four classes it would always be 1


def test_calibration_error_by_hand():
    # Two bins of 15: ]12/15, 13/15] has 0.82 and 0.86 of which one is right, ]7/15, 8/15] has 0.5, which is wrong.
    outputs = scores([0, 1, 0], [0.82, 0.86, 0.5], 3)
    results = classified(outputs, torch.tensor([0, 0, 1]), "abc")
    expected = 2 / 3 * abs(1 / 2 - 0.84) + 1 / 3 * abs(0 - 0.5)
    assert results["expected_calibration_error"] == pytest.approx(expected, abs=1e-6)
    filled = {number: one for number, one in enumerate(results["calibration"]) if one[0]}
    assert filled == {7: pytest.approx([1, 0.5, 0.0]), 12: pytest.approx([2, 0.84, 0.5])}
    assert results["calibration"][0] == [0, None, None]


def test_calibration_bins_are_closed_above():
    assert calibration_error([(1, 0.5, 1.0), (3, 2.4, 2.0)]) == pytest.approx((0.5 + 0.4) / 4)
    # Both confidences in the last bin, ]14/15, 1]: their errors balance, as they would not in two bins.
    outputs = torch.tensor([[100.0, 0.0], [3.0, 0.0]])  # 1 and 0.9526
    p = 1 / (1 + math.exp(-3))
    results = classified(outputs, torch.tensor([0, 1]), "ab")
    assert results["expected_calibration_error"] == pytest.approx(abs((1 + p) / 2 - 0.5), abs=1e-6)


def test_a_calibrated_network_has_no_calibration_error():
    outputs = scores([0] * 10, [0.7] * 10, 2)
    assert classified(outputs, torch.tensor([0] * 7 + [1] * 3), "ab")["expected_calibration_error"] < 1e-6


def test_top_five_by_hand():
    outputs = torch.arange(7.0).repeat(4, 1)  # the five best are 2 to 6
    assert classified(outputs, torch.tensor([6, 2, 1, 0]), "abcdefg")["top5_accuracy"] == 0.5
    assert classified(torch.zeros(7, 7), torch.arange(7), "abcdefg")["top5_accuracy"] == pytest.approx(5 / 7)  # not 1


def test_likelihood_is_that_of_torch_and_not_of_a_smoothed_loss():
    outputs, labels = 3 * torch.randn(50, 6), torch.randint(6, (50,))
    results = classified(outputs, labels, "abcdef", parts=7)
    assert results["negative_log_likelihood"] == pytest.approx(F.cross_entropy(outputs, labels).item(), rel=1e-6)


def test_the_parts_do_not_matter():
    outputs, labels = 3 * torch.randn(50, 6), torch.randint(6, (50,))
    one, many = (classified(outputs, labels, "abcdef", parts=parts) for parts in (1, 7))
    for name in ("confusion", "per_class", "top5_accuracy", "accuracy_interval"):
        assert one[name] == many[name]
    assert one["expected_calibration_error"] == pytest.approx(many["expected_calibration_error"], rel=1e-9)


def test_of_a_label_for_every_pixel_labels_are_counted_and_the_interval_is_over_examples():
    labels = torch.tensor([[0, 1], [1, 1], [0, 0]])
    predicted = torch.tensor([[0, 0], [1, 1], [0, 1]])  # accuracy 1/2, 1, 1/2
    outputs = F.one_hot(predicted, 2).movedim(-1, 1).float()
    results = classified(outputs, labels, "ab")
    assert results["confusion"] == {"a": {"a": 2, "b": 1}, "b": {"a": 1, "b": 2}}
    assert results["accuracy_interval"] == list(mean_interval(2.0, 1.5, 3))


def test_labels_that_are_ignored_count_for_nothing():
    torch.manual_seed(0)
    labels = torch.randint(6, (5, 4, 3))
    outputs = 3 * torch.randn(5, 6, 4, 3)
    labels[:, 0] = -100
    labels[2, 1] = -100
    flat, kept = outputs.movedim(1, -1).reshape(-1, 6), labels.flatten() != -100
    expected = classified(flat[kept], labels.flatten()[kept], "abcdef")
    got = classified(outputs, labels, "abcdef", parts=2)
    for name in ("confusion", "per_class", "top5_accuracy"):
        assert got[name] == expected[name]
    for name in ("negative_log_likelihood", "expected_calibration_error"):
        assert got[name] == pytest.approx(expected[name], rel=1e-6)
    right = (outputs.argmax(1) == labels).flatten(1).sum(1) / torch.tensor([9.0, 9.0, 6.0, 9.0, 9.0])
    assert got["accuracy_interval"] == pytest.approx(mean_interval(float(right.sum()), float(right.square().sum()), 5))


# -- regression


def test_regression_by_hand():
    outputs, targets = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 3.0, 2.0])  # errors 0, -1, 2
    measures = RegressionMeasures("mean_absolute_error")
    for slicing in (slice(0, 2), slice(2, 3)):
        measures.add(outputs[slicing], targets[slicing], (outputs - targets)[slicing].abs())
    results = measures.results()
    assert results["root_mean_squared_error"] == pytest.approx(math.sqrt(5 / 3))
    assert results["r_squared"] == pytest.approx(1 - 5 / 2)
    assert results["mean_absolute_error_interval"] == pytest.approx(mean_interval(3.0, 5.0, 3))


@pytest.mark.parametrize(("value", "parts"), [(1.0, 2), (0.1, 2), (0.1, 1)])  # the sums of 0.1 have rounding errors
def test_targets_that_do_not_vary_have_nothing_to_explain(value, parts):
    measures = RegressionMeasures("m")
    for _ in range(parts):
        measures.add(torch.ones(1000, 1), torch.full((1000, 1), value), torch.zeros(1000))
    assert measures.results()["r_squared"] is None


def test_several_outputs_vary_each_around_its_own_mean():
    targets = torch.tensor([[0.0, 1e6], [2.0, 1e6 + 4], [4.0, 1e6 + 2]])  # squared distances to the means: 8 and 8
    outputs = targets + torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    constant = targets.mean(0).expand(3, 2)
    for guessed, explained in ((outputs, 1 - 2 / 16), (constant, 0)):
        measures = RegressionMeasures("m")
        for part in (slice(0, 1), slice(1, 3)):
            measures.add(guessed[part], targets[part], torch.zeros(3)[part])
        assert measures.results()["r_squared"] == pytest.approx(explained)


def test_balanced_accuracy_and_the_worst_class_by_hand():
    measures = ClassificationMeasures("accuracy", ("a", "b", "c", "d"))
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    predicted = torch.tensor([0, 0, 0, 1, 0, 1, 0])
    measures.add(torch.eye(4)[predicted], labels, predicted == labels)
    results = measures.results()
    assert results["balanced_accuracy"] == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)  # d has no example
    assert results["worst_class"] == {"name": "c", "accuracy": 0.0, "examples": 1}


# -- bounds


@pytest.mark.parametrize("classes", [7, 2049])
def test_the_pairs_that_are_met_are_the_table(classes):
    """Few classes are counted in a table, many by the pairs that are met."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.zeros(60, classes)
    predicted, labels = (torch.randint(5, (60,), generator=generator) for _ in range(2))
    outputs[torch.arange(60), predicted] = 1.0
    labels[:3] = IGNORED
    results = classified(outputs, labels, [str(k) for k in range(classes)], parts=4)
    counts = Counter((int(label), int(p)) for label, p in zip(labels, predicted, strict=True) if label != IGNORED)
    found = {(int(t), int(p)): n for t, row in results["confusion"].items() for p, n in row.items()}
    assert found == dict(counts)
    assert {k: v["examples"] for k, v in results["per_class"].items() if v["examples"]} == {
        str(k): n for k, n in sorted(Counter(int(label) for label in labels if label != IGNORED).items())
    }


def test_memory_grows_with_the_classes_and_not_with_their_square():
    measures = ClassificationMeasures("accuracy", [str(k) for k in range(50_000)])
    for _ in range(2):
        outputs, labels = torch.randn(4, 50_000), torch.randint(50_000, (4,))
        measures.add(outputs, labels, outputs.argmax(1) == labels)
    assert max(held.numel() for held in vars(measures).values() if isinstance(held, torch.Tensor)) == 100_000
    results = measures.results()
    assert sum(len(row) for row in results["confusion"].values()) <= 8
    assert sum(entry["examples"] for entry in results["per_class"].values()) == 8


def test_too_many_pairs_are_left_out_with_a_reason(monkeypatch):
    monkeypatch.setattr("nas.training.metrics.MOST_PAIRS", 10)
    monkeypatch.setattr("nas.training.metrics.LARGEST_TABLE", 3)
    outputs, labels = torch.eye(6).repeat(6, 1), torch.arange(6).repeat_interleave(6)
    results = classified(outputs, labels, "abcdef", parts=3)
    assert results["confusion"] is None
    assert results["confusion_reason"] == "more than 10 pairs of classes were met"
    assert results["per_class"]["a"] == {"accuracy": 1 / 6, "examples": 6}


def test_labels_that_are_all_ignored_have_no_measures_and_a_reason():
    measures = Optional(lambda: ClassificationMeasures("accuracy", "abc"))
    labels = torch.full((4,), IGNORED)
    measures.add(torch.randn(4, 3), labels, torch.zeros(4))
    results = measures.results()
    assert "no label of the split counts" in results.pop("measures_reason")
    assert set(results) == {
        *("accuracy_interval", "negative_log_likelihood", "expected_calibration_error", "calibration"),
        *("per_class", "confusion"),
    }
    assert set(results.values()) == {None}
