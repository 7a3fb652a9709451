"""Statistics of a study, against values that are known."""

import numpy as np
import pytest

from nas.studies import statistics


def test_one_run_has_no_interval_and_equal_runs_have_a_point() -> None:
    assert statistics.described([0.5]) == {"n": 1, "mean": 0.5}
    assert statistics.described([54.3, 54.3, 54.3]) == {"n": 3, "mean": 54.3, "std": 0.0, "interval": [54.3, 54.3]}


def test_an_interval_holds_the_mean_and_is_the_same_again() -> None:
    known = statistics.described([1.0, 2.0, 3.0, 4.0])
    low, high = known["interval"]
    assert known["std"] == pytest.approx(1.2909944)
    assert 1.0 <= low < 2.5 < high <= 4.0
    assert statistics.described([1.0, 2.0, 3.0, 4.0])["interval"] == [low, high]


def test_p_values_are_those_of_all_permutations() -> None:
    # Of the 70 ways to split eight values in two fours, two are as far apart.
    assert statistics.p_value([1, 2, 3, 4], [5, 6, 7, 8]) == pytest.approx(2 / 70)
    assert statistics.p_value([1, 2, 3, 4], [1, 2, 3, 4]) == 1.0
    assert statistics.p_value([1], [5, 6]) is None
    # Sums of these numbers are rounded: equal means, and means that six of ten ways put as far apart.
    assert statistics.p_value([93.1, 93.2, 93.3], [93.1, 93.2]) == 1.0
    assert statistics.p_value([93.1, 93.3], [93.0, 93.2, 93.1]) == pytest.approx(0.6)
    assert statistics.p_value([1e-12, 2e-12], [3e-12, 4e-12]) == pytest.approx(2 / 6)


def test_holm() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == []


def test_pairs_are_corrected_for_their_number_without_those_that_have_no_test() -> None:
    pairs = statistics.compared({"a": [1, 2, 3, 4], "b": [5, 6, 7, 8], "c": [9]})
    assert [(pair["one"], pair["other"], pair["difference"]) for pair in pairs] == [
        ("a", "b", -4.0), ("a", "c", -6.5), ("b", "c", -2.5),
    ]  # fmt: skip
    assert pairs[0]["p_holm"] == pairs[0]["p"]
    assert [pair["p"] for pair in pairs[1:]] == [None, None]


def test_rank_agreement() -> None:
    truths = [1.0, 2.0, 3.0, 4.0, 5.0]
    same = statistics.rank_agreement(truths, truths)
    assert [same[name] for name in ("kendall", "spearman", "weighted_tau")] == pytest.approx([1, 1, 1])
    assert same["precision_at"] == {"1": 1.0, "5": 1.0}
    swapped = statistics.rank_agreement([1.0, 2.0, 3.0, 5.0, 4.0], truths)
    assert swapped["kendall"] == pytest.approx(0.8)  # one pair of ten
    assert swapped["weighted_tau"] < swapped["kendall"]  # among the best
    assert swapped["precision_at"]["1"] == 0.0
    assert statistics.rank_agreement([1.0] * 5, truths)["kendall"] is None
    # Of equal scores each order is as likely. Of equal truths each is among the best.
    assert statistics.rank_agreement([1.0] * 5, truths)["precision_at"] == {"1": 0.2, "5": 1.0}
    assert statistics.rank_agreement([3.0, 2.0, 2.0, 1.0], [9.0, 9.0, 1.0, 9.0], at=(1, 2))["precision_at"] == {
        "1": 1.0, "2": 0.75,
    }  # fmt: skip
    broken = statistics.rank_agreement([5.0, float("nan"), 4.0, 3.0, 2.0], truths)
    assert broken == statistics.rank_agreement([5.0, 1.0, 4.0, 3.0, 2.0], truths)  # NaN is the worst


def test_a_mean_among_the_means_of_as_many_random_values() -> None:
    population = np.array([1.0, 2.0, 3.0])
    assert statistics.p_of_random([2.5, 2.5], population) == pytest.approx(1 / 3, abs=0.01)  # 2 and 3 of three pairs
    assert statistics.p_of_random([3.0], population) == pytest.approx(1 / 3, abs=0.01)
    assert statistics.p_of_random([0.5, 1.0], population) == 1
    assert statistics.p_of_random([3.0, 3.0], population) == 1 / 100_000
    assert statistics.p_of_random([2.0, 2.0, 2.0], population) == 1  # all of it
    large = np.concatenate([population, np.full(9, 0.0)])
    assert statistics.p_of_random([2.5, 2.5], large) == pytest.approx(1 / 66, abs=0.002)  # 2 and 3 of 66 pairs
    many = np.arange(100.0)  # of which 40 draws are different once in 3,000 times
    assert statistics.p_of_random([49.5] * 40, many) == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match="4 values of a population of 3, expected no more"):
        statistics.p_of_random([1.0] * 4, population)
