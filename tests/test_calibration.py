"""Calibration of common.py: against independent implementations, and where the truth is known."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from sklearn.metrics import brier_score_loss

import few_shot
import finetune
import linear_probe
import plot
import zero_shot
from common import (
    accuracy_interval,
    calibrate,
    conformal_quantile,
    conformal_scores,
    evaluate,
    fit_temperature,
    measure_calibration,
    read_weights,
)

sys.path.insert(0, str(ROOT / "bench"))
import coverage


@pytest.fixture(scope="module")
def simulated():
    """(logits, labels) of 3000 images each to fit and to test: labels are drawn from softmax(logits / 2)."""
    return [coverage.confident(np.random.default_rng(seed), 3000, 6, 2.0) for seed in (0, 1)]


def test_the_temperature_is_found_again(simulated):
    (logits, labels), _ = simulated
    assert fit_temperature(logits, labels) == pytest.approx(2, rel=0.06)
    # the least cross-entropy with smoothed labels, by trying
    smooth = torch.nn.functional.one_hot(labels, 6) * 3000 / 3001 + 1 / 3001 / 6
    tried = torch.linspace(1.6, 2.4, 801)
    losses = [-(smooth * (logits / t).log_softmax(1)).sum().item() for t in tried]
    assert fit_temperature(logits, labels) == pytest.approx(tried[np.argmin(losses)].item(), abs=2e-3)
    assert fit_temperature(7 * logits + 3, labels) == pytest.approx(7 * fit_temperature(logits, labels), rel=1e-3)


def test_the_temperature_is_finite_where_all_or_nothing_is_right():
    logits = 5 * torch.eye(4).repeat(5, 1)
    sure, unsure = fit_temperature(logits, torch.arange(4).repeat(5)), fit_temperature(logits, (torch.arange(4).repeat(5) + 1) % 4)
    assert 0.5 < sure < 2 < 100 < unsure < 1e4  # 20 right answers of 20 are worth p = .99
    assert np.isfinite(fit_temperature(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])))


def test_scores_and_quantiles_by_hand():
    scores = conformal_scores(torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]]))
    assert scores["lac"].tolist() == [pytest.approx([0.8, 0.5, 0.7]), pytest.approx([0.1, 0.95, 0.95])]
    assert scores["aps"].tolist() == [pytest.approx([0.8, 0, 0.5]), pytest.approx([0, 0.9, 0.95])]
    values = torch.tensor([0.4, 0.1, 0.3, 0.2, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert conformal_quantile(values, 0.1) == pytest.approx(0.9) and conformal_quantile(values, 0.2) == pytest.approx(0.8)
    assert conformal_quantile(values, 0.25) == pytest.approx(0.8) and conformal_quantile(values[1:], 0.1) == 1  # 8 are too few for 9 of 10


def test_metrics_are_those_of_independent_implementations(simulated):
    (held, y_held), (logits, y) = ((part[0][:, :2].contiguous(), part[1] % 2) for part in simulated)
    fitted = calibrate(held, y_held, 0.1, "val split")
    m = measure_calibration(fitted, logits[:1000], y[:1000], ["a", "b"], np.arange(3000), reject=0.7)
    for name, t in (("_before", 1), ("", m["temperature"])):
        p = (logits[:1000] / t).double().softmax(1).numpy()
        assert m[f"brier{name}"] == pytest.approx(2 * brier_score_loss(y[:1000], p[:, 1]))  # over both classes
        # ECE by a loop over 15 bins of the sorted confidences
        ranked = sorted((max(row), int(row.argmax() == label)) for row, label in zip(p, y[:1000].tolist()))
        total, places = 0, [i * 15 // 1000 for i in range(1000)]
        for b in range(15):
            mine = [pair for pair, place in zip(ranked, places) if place == b]
            total += abs(sum(c for c, _ in mine) - sum(r for _, r in mine))
        assert m[f"ece{name}"] == pytest.approx(total / 1000) and len(m[f"reliability{name}"]) == 15
    assert sum(n for *_, n in m["reliability"]) == 1000 and m["ece"] < m["ece_before"]
    kept = p.max(1) >= 0.7
    right = p.argmax(1) == y[:1000].numpy()
    assert m["kept"] == {"from": 0.7, "share": kept.mean(), "accuracy": right[kept].mean()}
    assert m["reject"][-1] == [1, right.mean()] and m["reject"][9][1] == right[np.argsort(-p.max(1))[:500]].mean()
    own = p[np.arange(1000), y[:1000]]
    assert m["lac"]["coverage"] == (1 - own <= fitted["lac"]).mean() and m["lac"]["size"] == (1 - p <= fitted["lac"]).sum(1).mean()
    for c, name in enumerate("ab"):
        assert m["aps"]["per_class"][name] == np.mean([q >= 0.5 or 1 - q <= fitted["aps"] for q in own[y[:1000] == c]])


def test_images_of_one_confidence_share_a_bin():
    """Else bins would be classes, in whose order the images come."""
    logits, labels = torch.zeros(400, 2) + torch.tensor([1.0, 0]), torch.arange(2).repeat_interleave(200)
    m = measure_calibration(calibrate(logits, labels, 0.1, ""), logits, labels, ["a", "b"], np.arange(400))
    assert m["reliability"] == [[pytest.approx(0.5, abs=0.01), 0.5, 400]] and m["ece"] < 0.01


@pytest.mark.parametrize("held", [30, 200])
def test_sets_hold_the_truth_as_often_as_promised(held):
    m = coverage.sets_of_classes(np.random.default_rng(0), held, 5, 0.1, 80)
    assert abs(m["lac"] - 0.9) < 0.02 and m["aps"] > 0.88
    if held == 200:
        assert abs(m["temperature"] - 2) < 0.15 and m["error"] < 1.4 * m["chance"] < m["before"] / 1.5


# ---- the scripts ----------------------------------------------------------------------------------------------------


def test_probe_is_calibrated_on_images_it_has_not_seen(world, call):
    flags = "--data tiny --model toy-RN --reject 0.5 --out r.json --save h.safetensors"
    code, out, err = call(linear_probe.main, *flags.split())
    assert code == 0, err
    record, about = json.loads((world / "r.json").read_text()), read_weights("h.safetensors")[0]
    m, told = record["metrics"]["calibration"], about["calibration"]
    assert {*told} == {"temperature", "alpha", "lac", "aps", "images", "source"} and told["source"] == "held-out training images"
    assert 8 < told["images"] <= 32
    assert m["temperature"] == told["temperature"] and set(m["lac"]["per_class"]) == set(record["data"]["classes"])
    assert told["temperature"] != 1 and {"ece", "ece_before", "ece_chance", "brier", "brier_before", "reliability", "reject", "kept"} <= {
        *m
    }
    assert f"{told['temperature']:.3f}   fitted on {told['images']} images" in out and "the probe has learnt from all of train" in out


def test_each_held_out_image_counts_once_and_by_a_head_that_has_not_seen_it():
    class Images:
        labels = torch.arange(2).repeat_interleave(5)

        def __len__(self):
            return 10

        def block(self, seed):
            return np.isin(np.arange(10), [[0, 5], [0, 6], [2, 6]][seed])

        def take(self, rows):
            return rows.tolist()

    x, y = {"train": torch.eye(10)}, {"train": Images.labels}
    heads = [(torch.ones(2, 10) * i, torch.zeros(2)) for i in (1, 2, 3)]
    logits, labels, rows = linear_probe.out_of_sample({"train": Images()}, x, y, heads, 0)
    assert rows == [0, 5, 6, 2] and logits[:, 0].tolist() == [1, 1, 2, 3] and labels.tolist() == [0, 1, 1, 0]


def test_network_is_calibrated_on_validation(world, call):
    flags = "--data tiny --model toy-RN --epochs 1 --batch 8 --lr 0 --head-lr 0 --out r.json --save n.safetensors"
    code, out, err = call(finetune.main, *flags.split())
    assert code == 0, err
    m, told = json.loads((world / "r.json").read_text())["metrics"], read_weights("n.safetensors")[0]["calibration"]
    assert told["images"] == 8 and told["lac"] == told["aps"] == 1  # too few to leave any class out
    assert m["calibration"]["lac"]["coverage"] == 1 and m["calibration"]["lac"]["size"] == 4 and "LAC sets" in out


def test_captions_alone_are_not_calibrated(world, call):
    assert "probabilities from captions alone are not calibrated" in call(zero_shot.main, "--data", "tiny", "--model", "toy-RN")[1]


def test_bad_flags_are_one_line(call):
    for flag, value in (("--alpha", 0), ("--alpha", 1), ("--reject", 2)):
        code, _, err = call(linear_probe.main, flag, value)
        assert code == 2 and flag in err and "between 0 and 1" in err


# ---- unequal classes --------------------------------------------------------------------------------------------------


def test_balanced_fits_are_those_of_copies():
    """Each image of the small class 10 times is what its weight says."""
    rng = torch.Generator().manual_seed(0)
    y = torch.tensor([0] * 60 + [1] * 6)
    x = torch.randn(66, 5, generator=rng).double() + y[:, None]
    say = linear_probe.equal_say(y)
    assert say[:60].sum().item() == pytest.approx(say[60:].sum().item()) and say.mean().item() == pytest.approx(1)
    copied = torch.cat([x, x[60:].repeat(9, 1)]), torch.cat([y, y[60:].repeat(9)])
    start = x.new_zeros(2, 5), x.new_zeros(2)
    ours, theirs = linear_probe.logistic_regression(x, y, 0.1, *start, each=say), linear_probe.logistic_regression(*copied, 0.1, *start)
    assert torch.allclose(ours[0], theirs[0], atol=1e-5) and torch.allclose(ours[1], theirs[1], atol=1e-5)
    assert not torch.allclose(ours[0], linear_probe.logistic_regression(x, y, 0.1, *start)[0], atol=1e-2)
    ours, theirs = (
        few_shot.logistic(a[None], b, a.new_zeros(1, 5, 2), 0.1, balance=flag) for a, b, flag in ((x, y, True), (*copied, False))
    )
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_mean_per_class_has_an_interval_of_its_own():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [200, 200, 40])
    right = rng.random(440) < np.repeat([0.9, 0.9, 0.5], [200, 200, 40])
    m = evaluate(
        torch.nn.functional.one_hot(torch.from_numpy(np.where(right, labels, (labels + 1) % 3))), torch.from_numpy(labels), list("abc")
    )
    low, high = m["mean_per_class_ci95"]
    assert low < m["mean_per_class"] < high and high - low > 1.2 * np.diff(m["top1_ci95"])  # the small class decides
    means = [right[labels == c].mean() for c in range(3)]
    by_hand = 1.96 * np.sqrt(sum(p * (1 - p) / n / 9 for p, n in zip(means, (200, 200, 40))))
    assert [low, high] == pytest.approx([np.mean(means) - by_hand, np.mean(means) + by_hand], abs=0.01)
    assert accuracy_interval(right[:400], labels[:400], per_class=True) == accuracy_interval(right[:400], labels[:400])  # of equal classes


@pytest.mark.parametrize("name", coverage.UNEQUAL)
def test_intervals_of_the_mean_per_class_hold(name):
    held = [coverage.mean_per_class(np.random.default_rng(0), coverage.UNEQUAL[name], p, 200)[0] for p in coverage.ACCURACIES]
    assert min(held) > 0.91


@pytest.mark.parametrize("script, flags", [(linear_probe, ""), (finetune, "--epochs 1 --batch 8"), (few_shot, "--shots 8 --seeds 1")])
def test_balance_is_said(world, call, script, flags):
    shutil.copytree(world / "data" / "tiny", world / "own")
    for file in sorted(sorted((world / "own" / "Training").iterdir())[0].iterdir())[3:]:
        file.unlink()
    told = []
    for more in ((), ("--balance",)):
        code, out, err = call(script.main, "--data", "./own", "--model", "toy-RN", *flags.split(), *more, "--out", "r.json")
        assert code == 0, err
        told.append(json.loads((world / "r.json").read_text()))
    plain, balanced = ([row["method"] for row in record["table"]] for record in told)
    weighed = [m + ", balanced" if m not in ("few-shot, class-mean", "few-shot, tip") else m for m in plain]
    assert balanced == weighed and told[1]["args"]["balance"] is True
    if script is finetune:
        assert abs(told[0]["history"][2]["loss"] - told[1]["history"][2]["loss"]) > 0.1  # of a batch with one of the few


def test_advice_by_mean_per_class_where_classes_are_unequal(monkeypatch):
    """100 images of one class and 20 of another: `large` names all of the first right, `small` nearly all of the second."""
    true = np.repeat([0, 1], [100, 20])
    named = {"large": [np.ones(100), np.arange(20) < 4], "small": [np.arange(100) < 85, np.arange(20) < 19], "poor": [np.zeros(100)] * 2}
    row = {"method": "linear probe"}

    class Entry:
        def __init__(self, model, right):
            self.model, self.right, self.row, self.run = model, right, row, self
            self.arrays = {"true": true, "cluster": np.arange(120)}

    entries = [Entry(model, np.concatenate([a, b])[None, :120].astype(float)) for model, (a, b) in named.items()]
    monkeypatch.setattr(plot, "entries", lambda study, budget: entries)
    (said,) = plot.say_per_class(None, 2)
    assert "20 to 100 test images" in said and "small, mean per class 0.90 (" in said and "Worse: large, poor" in said
    true[:40] = 1  # 60 and 60
    assert plot.say_per_class(None, 2) == []
    monkeypatch.setattr(plot, "entries", lambda study, budget: [])
    assert plot.say_per_class(None, 2) == []
