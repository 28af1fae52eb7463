"""What the README claims about the toy world, read from results/ (`make check`)."""

import json
from pathlib import Path

import numpy as np
import pytest

RESULTS = Path(__file__).resolve().parent.parent / "results"


def result(path):
    path = RESULTS / path
    assert path.exists(), f"{path} is missing: run `make all` first"
    return json.loads(path.read_text())


@pytest.mark.parametrize("model", ["toy-ViT", "toy-RN"])
def test_zero_shot_leaves_something_to_learn(model):
    record = result(f"zero_shot/toy/{model}.json")
    m = record["metrics"]
    assert 0.60 <= m["top1"] <= 0.85
    assert m["top1_ci95"][0] > 2 * m["chance"] and m["top1_ci95"][0] < m["top1"] < m["top1_ci95"][1]
    assert record["data"]["counts"] == {"test": 480} and record["labels_used"] == 0
    saved = np.load(RESULTS / f"zero_shot/toy/{model}.npz")
    assert np.mean(saved["true"] == saved["predicted"]) == pytest.approx(m["top1"])


@pytest.mark.parametrize("model", ["toy-ViT", "toy-RN"])
def test_one_label_is_worse_than_none_and_all_are_not_perfect(model):
    row = result("toy_world.json")[model]
    assert row["zero_shot"] == pytest.approx(result(f"zero_shot/toy/{model}.json")["metrics"]["top1"], abs=0.005)
    assert row["one_shot"] <= row["zero_shot"] - 0.05
    assert row["zero_shot"] < row["all_labels"] <= 0.95
