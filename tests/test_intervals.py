"""Intervals of common.py: against scipy, against the exact tests, and on simulated studies whose truth is known."""

import math
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy.stats import binomtest, norm, t

import common
from common import (
    _other_classes as other_classes,
    _student_quantile as student_quantile,
    _variance_of_mean as variance_of_mean,
    accuracy_interval,
    evaluate,
    normal_quantile,
    paired_difference,
    wilson,
)

sys.path.insert(0, str(ROOT / "bench"))
import coverage


def test_quantiles():
    assert normal_quantile() == pytest.approx(1.959964, abs=1e-6) and normal_quantile(10) == pytest.approx(norm.ppf(1 - 0.0025))
    for df in (4, 9, 30, 1000):
        assert student_quantile(normal_quantile(), df) == pytest.approx(t.ppf(0.975, df), rel=0.01)


@pytest.mark.parametrize("hits, n", [(0, 10), (7, 10), (132, 160), (10, 10)])
def test_wilson_is_scipys(hits, n):
    reference = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits / n, n) == pytest.approx([reference.low, reference.high], abs=1e-9)


def test_the_variance_is_the_textbooks_of_a_stratified_sample():
    rng = np.random.default_rng(0)
    labels, right = np.repeat([0, 1, 2], [10, 30, 60]), rng.random(100) < np.repeat([0.1, 0.6, 0.9], [10, 30, 60])
    by_hand = sum((n / 100) ** 2 * right[labels == c].var(ddof=1) / n for c, n in enumerate((10, 30, 60)))
    variance, _, independent = variance_of_mean(right.astype(float), labels, np.arange(100))
    assert variance == pytest.approx(by_hand) and independent == 100
    doubled = variance_of_mean(np.repeat(right, 2).astype(float), np.repeat(labels, 2), np.repeat(np.arange(100), 2))
    assert doubled[0] == pytest.approx(by_hand) and doubled[2] == 100  # a second copy of each image tells nothing new


def test_classes_that_are_one_cluster_each_are_the_sample():
    right, labels = np.repeat([1.0, 0.0, 1.0, 1.0, 0.0], 4), np.repeat(np.arange(5), 4)
    variance, *_ = variance_of_mean(right, labels, labels)
    assert variance == pytest.approx(np.var([1, 0, 1, 1, 0], ddof=1) / 5)


def gap(better, worse, same):
    """Of images of one class on which two encoders differ or agree."""
    after = np.r_[np.ones(better), np.zeros(worse), np.ones(same)]
    before = np.r_[np.zeros(better), np.ones(worse), np.ones(same)]
    return paired_difference(after, before, np.zeros(len(after), int))["ci95"]


def test_few_images_that_differ_are_judged_as_the_exact_test_does():
    """Mid-p of McNemar's exact conditional test (Fagerland et al. 2013): .0625 of 4 and 0, .031 of 5 and 0."""
    for same in (2, 40, 400):
        for m in range(1, 40):
            for worse in range(m // 2 + 1):
                mid_p = 2 * binomtest(worse, m, alternative="less").pvalue - math.comb(m, worse) / 2**m
                if abs(mid_p - 0.05) > 0.012:
                    assert (gap(m - worse, worse, same)[0] > 0) == (mid_p < 0.05), (m, worse, mid_p)
    assert gap(4, 0, 476)[0] < 0 < gap(5, 0, 475)[0]
    low, high = gap(6, 0, 0)
    assert 0 < low < 0.3 and high == 1
    low, high = gap(0, 0, 480)  # none differs: equal to within what 480 images can tell
    assert low == -high and 0.005 < high < 0.01


def test_a_difference_is_mirrored_when_the_two_change_places():
    rng = np.random.default_rng(1)
    a, b, labels = rng.random(200) < 0.8, rng.random(200) < 0.6, np.arange(200) % 5
    one, two = (paired_difference(x, y, labels) for x, y in ((a, b), (b, a)))
    assert one["mean"] == -two["mean"] and one["ci95"] == pytest.approx([-v for v in reversed(two["ci95"])])
    d = a.astype(float) - b
    half = 1.96 * math.sqrt(d.var() / 200)
    assert one["ci95"] == pytest.approx([d.mean() - half, d.mean() + half], abs=0.02)


def test_redrawing_the_images_of_the_classes_tells_apart_what_redrawing_classes_did_not():
    """40 against 87 images of 480: the exact test has p < 1e-4, a bootstrap over classes includes 0 where few classes carry it."""
    d = np.zeros(480)
    labels = np.repeat(np.arange(24), 20)
    d[labels < 4], d[(labels >= 4) & (labels < 6)] = -1, 1  # 80 and 40, each in whole classes
    low, high = paired_difference(d > 0, d < 0, labels)["ci95"]
    assert low < high < -0.03
    by_class = other_classes(d, labels)
    assert by_class[0] < 0 < by_class[1]


def test_draws_of_the_labels_widen_the_interval():
    labels, rng = np.repeat(np.arange(4), 50), np.random.default_rng(0)
    same = np.repeat((rng.random(200) < 0.7)[None], 5, 0)
    lucky = np.stack([rng.random(200) < p for p in (0.5, 0.6, 0.7, 0.8, 0.9)])
    assert np.diff(accuracy_interval(same, labels)) == pytest.approx(np.diff(accuracy_interval(same[:1], labels)))
    assert np.diff(accuracy_interval(lucky, labels))[0] > 2 * t.ppf(0.975, 4) * np.std(lucky.mean(1), ddof=1) / math.sqrt(5) - 1e-9


def test_other_classes_is_a_bootstrap_and_silent_below_ten():
    labels = np.repeat(np.arange(12), 5)
    right = np.repeat(np.r_[np.ones(9), np.zeros(3)], 5)
    low, high = other_classes(right, labels)
    rng = np.random.default_rng(7)
    reference = np.quantile([right.reshape(12, 5)[rng.integers(0, 12, 12)].mean() for _ in range(4000)], [0.025, 0.975])
    assert [low, high] == pytest.approx(reference.tolist(), abs=0.04) and other_classes(right[:45], labels[:45]) is None


@pytest.mark.parametrize("setting", [(2, 200, 1, 0.0), (24, 480, 1, 0.0), (24, 480, 4, 0.6), (100, 200, 1, 0.0)])
def test_intervals_hold_as_often_as_they_say(setting):
    accuracy, difference = coverage.two_encoders(np.random.default_rng(0), *setting, 0.8, 300)
    assert 0.91 <= accuracy <= 0.985 and difference >= 0.92
    assert min(coverage.few_labels(np.random.default_rng(0), 24, 480, 0.7, 200)) > 0.91


@pytest.mark.parametrize("encoders", [2, 5])
def test_equal_encoders_are_seldom_told_apart(encoders):
    assert coverage.equal_encoders(np.random.default_rng(0), encoders, 24, 480, 1, 0.0, 0.8, 200) <= 0.08


def test_metrics_of_logits():
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (300,), generator=rng)
    logits = torch.randn(300, 7, generator=rng) + 2 * torch.nn.functional.one_hot(labels, 7)
    m = evaluate(logits, labels, list("abcdefg"))
    assert m["top5"] == pytest.approx((logits.topk(5).indices == labels[:, None]).any(1).double().mean().item())
    predicted = logits.argmax(1)
    pairs = {}
    for true, guess in zip(labels.tolist(), predicted.tolist()):
        if true != guess:
            pairs["abcdefg"[true], "abcdefg"[guess]] = pairs.get(("abcdefg"[true], "abcdefg"[guess]), 0) + 1
    assert [c["count"] for c in m["confusions"]] == sorted(pairs.values(), reverse=True)[:10]
    assert all(pairs[c["true"], c["predicted"]] == c["count"] for c in m["confusions"])
    assert m["largest_class"] == labels.bincount().max().item() / 300 and m["top1_ci95_other_classes"] is None
    assert evaluate(logits[:, :5], labels % 5, list("abcde"))["top5"] is None
    tie = evaluate(torch.zeros(4, 6), torch.tensor([0, 1, 2, 5]), list("abcdef"))
    assert tie["top1"] == 0.25 and tie["top5"] == 0.75  # of equals the first class


def test_small_classes_that_are_missed_are_told(capsys):
    labels = torch.tensor([0] * 90 + [1] * 5 + [2] * 5)
    common._print_metrics(evaluate(torch.tensor([[1.0, 0.0, 0.0]]).expand(100, -1), labels, ["a", "b", "c"]))
    out = capsys.readouterr().out
    assert "always naming the largest class: 0.900" in out and "mean per class lies far below top-1" in out and "top-5" not in out
