"""linear_probe.py's labels that look wrong and pictures that lie in the data twice: against cleanlab, and planted ones are found."""

import csv
import random
import re
import shutil
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from cleanlab.count import compute_confident_joint, get_confident_thresholds
from cleanlab.filter import find_label_issues
from cleanlab.rank import order_label_issues
from conftest import ROOT
from PIL import Image, ImageOps
from test_copies import as_images, scenes

import linear_probe
from common import draw_pictures, find_copies, load_data, load_model
from linear_probe import (
    all_in_folds,
    blocked_folds,
    caption,
    cross_validated,
    find_pairs,
    find_suspects,
    identical,
    logistic_regression,
    write_list,
)


def noisy(seed, classes=6, images=400, width=5):
    """Out-of-sample probabilities and labels of which some are wrong; classes overlap and are unequal."""
    rng = torch.Generator().manual_seed(seed)
    true = torch.multinomial(torch.linspace(1, 4, classes), images, True, generator=rng)
    y = torch.where(torch.rand(images, generator=rng) < 0.15, torch.randint(classes, (images,), generator=rng), true)
    x = torch.randn(classes, width, generator=rng)[true] + 0.6 * torch.randn(images, width, generator=rng)
    fold = torch.arange(images) % 5
    p, judged = cross_validated(x.double(), y, fold, 0.01, classes)
    assert judged.all()
    return p, y


@pytest.mark.parametrize("seed", range(4))
def test_suspects_and_their_order_are_those_of_cleanlab(seed):
    """Its confident joint off the diagonal, but where the most probable of all classes is none of those that reach their thresholds.

    There it takes that class all the same, and we the most probable of those that do, as the paper has it. find_label_issues
    names fewer: none whose label is the most probable class.
    """
    p, y = noisy(seed)
    p = (p.log() - torch.arange(6) * 2 * (seed % 2)).softmax(1)  # every second time as by a classifier that prefers some classes
    rows, likely = find_suspects(p, y)
    _, theirs = compute_confident_joint(y.numpy(), p.numpy(), calibrate=False, return_indices_of_off_diagonals=True)
    reached = p.numpy() >= get_confident_thresholds(y.numpy(), p.numpy())
    top = p.numpy().argmax(1)
    differ = (reached.sum(1) > 1) & ~reached[np.arange(len(y)), top]
    assert differ.any() == (seed % 2)
    assert {*rows.tolist()} - {*np.flatnonzero(differ)} == {*theirs} - {*np.flatnonzero(differ)} and len(rows) > 20
    mask = np.zeros(len(y), bool)
    mask[rows] = True
    assert rows.tolist() == order_label_issues(mask, y.numpy(), p.numpy(), rank_by="self_confidence").tolist()
    for row, other in zip(rows.tolist(), likely.tolist()):
        best = max(np.flatnonzero(reached[row]), key=lambda c: p[row, c])
        assert other == best != y[row]
    if not differ.any():
        given = dict(filter_by="confident_learning", return_indices_ranked_by="self_confidence", n_jobs=1)
        issues = find_label_issues(y.numpy(), p.numpy(), **given)
        assert issues.tolist() == [row for row in rows.tolist() if top[row] != y[row]]


def test_a_class_without_images_suspects_nobody():
    p = torch.tensor([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.6, 0.3, 0.1], [0.0, 0.0, 1.0]])
    rows, likely = find_suspects(p, torch.tensor([0, 0, 1, 1, 0]))
    assert (rows.tolist(), likely.tolist()) == ([3], [0])  # not 4, whose class 2 has no threshold
    rows, likely = find_suspects(torch.cat([p, torch.tensor([[0.9, 0.05, 0.05]])]), torch.tensor([0, 0, 1, 1, 0, 1]))
    assert (rows.tolist(), likely.tolist()) == ([5, 3], [0, 0])


def test_folds_are_runs_of_each_class_and_whole_groups():
    y = np.array([0] * 23 + [1] * 3 + [2])
    fold = blocked_folds(y, np.arange(27))
    assert (np.diff(fold[:23]) >= 0).all() and min(np.bincount(fold[:23])) >= 4 and len({*fold[:23]}) == 5
    assert len({*fold[23:26]}) == 3
    # groups of any size are whole, and a class of two or more has two folds or more, also where classes share them
    rng = random.Random(0)
    for _ in range(50):
        groups = np.sort([rng.randrange(rng.choice([2, 3, 9])) for _ in range(30)])
        fold = blocked_folds(np.zeros(30, int), groups)
        assert all(len({*fold[groups == g]}) == 1 for g in groups) and (len({*fold}) >= 2) == (len({*groups}) >= 2)
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 0, 1])
    fold = blocked_folds(np.array([0] * 8 + [1] * 2), groups)
    assert all(len({*fold[groups == g]}) == 1 for g in groups) and fold[8] != fold[9]


def test_probabilities_are_of_images_that_were_not_fitted():
    p, y = noisy(0, images=60)
    rng = torch.Generator().manual_seed(1)
    x, fold = torch.randn(60, 5, generator=rng).double(), torch.arange(60) // 20
    p, judged = cross_validated(x, y, fold, 0.1, 7)
    weight, bias = logistic_regression(x[fold != 1], y[fold != 1], 0.1, x.new_zeros(7, 5), x.new_zeros(7), change=linear_probe.CHANGE)
    assert torch.allclose(p[20:40], (x @ weight.T + bias).softmax(1)[20:40])
    assert judged.all()
    y[3] = 6  # the only one of its class
    judged = cross_validated(x, y, fold, 0.1, 7)[1]
    assert judged.sum() == 59 and not judged[3]


def test_a_sheet_shows_long_names_whole(tmp_path):
    long = caption("a_very_long_name_of_a_file_that_" * 4 + ".jpg", "GREATER PRAIRIE CHICKEN $x_ -> CAMPO FLICKER")
    plain = np.zeros((20, 20, 3), np.uint8)
    sizes = []
    for text in (caption("a.jpg", "a -> b"), long):
        draw_pictures(tmp_path / "s.png", [plain] * 2, [text] * 2, ["black"] * 2, "t")
        sizes.append(Image.open(tmp_path / "s.png").size)
    assert sizes[0][0] == sizes[1][0] and sizes[1][1] > sizes[0][1] + 50  # taller, by lines


def test_a_list_without_rows_leaves_no_sheet_of_an_earlier_one(tmp_path):
    sheet = [np.zeros((20, 20, 3), np.uint8)], ["$a_$"], ["red"], "t"
    for rows in ([("ä", 2)], []):
        write_list(tmp_path / "l.csv", ["a", "b"], rows, sheet)
        assert (tmp_path / "l.csv").read_text(encoding="utf-8") == ("a,b\nä,2\n" if rows else "a,b\n")
        assert [f.name for f in sorted(tmp_path.iterdir())] == ["l.csv", "l.png"][: 1 + len(rows)]


def test_no_picture_is_a_pair_with_itself_whatever_block_it_lies_in(monkeypatch, capsys):
    x = torch.randint(0, 256, (4, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    parts = {"train": [0, 1, 0, 2, 1], "test": [2, 3, 3]}
    labels = {"train": [0, 0, 0, 0, 1], "test": [1, 0, 0]}
    images = {split: replace(as_images(x[rows], labels[split]), pixels=x[rows]) for split, rows in parts.items()}
    images["test"].pixels[2, 0, 0] ^= 255  # equal as a thumbnail only
    expected = [("train", 1, "train", 4), ("train", 3, "test", 0), ("train", 0, "train", 2), ("test", 1, "test", 2)]
    monkeypatch.setattr(linear_probe, "kept_copies", partial(find_copies, block=2))
    found = find_pairs(images, "cpu")
    assert [(*a, *b) for a, b, _ in found] == expected
    assert [p["exact"] for *_, p in found] == [True, True, True, False] and [p["same_label"] for *_, p in found] == [
        False,
        False,
        True,
        True,
    ]
    monkeypatch.setattr(linear_probe, "LARGE", 4)
    assert [(*a, *b) for a, b, _ in find_pairs(images, "cpu")] == expected[1::2] and "pairs within train are not" in capsys.readouterr().out
    images["train"].thumbnails[2, 0, 0] ^= 1  # equal in full size, but cut there
    assert not identical(images, ("train", 0), ("train", 2)) and identical(images, ("train", 1), ("train", 4))


# ---- the script -----------------------------------------------------------------------------------------------------


def read(file):
    with open(file, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def gathered(tmp_path, monkeypatch, tiny):
    """Scenes of three colours as classes, 10 and 5 of each in train and test, in the current folder as own/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(tiny / "weights")
    for c, name in enumerate(("red", "green", "blue")):
        for i, image in enumerate(scenes(15, seed=c)):
            x = np.asarray(image.resize((64, 64)))
            x = x // 2
            x[..., c] += 120
            file = tmp_path / "own" / ("train" if i < 10 else "test") / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x).save(file)
    return tmp_path / "own"


def probe(call, *args):
    code, out, err = call(linear_probe.main, "--data", "./own", "--model", "toy-RN", "--device", "cpu", *args)
    assert code == 0, err
    return out


def test_labels_that_were_made_wrong_are_named_first_and_nothing_else_changes(gathered, call):
    wrong = {"train/green/rot-ä.png": "red", "test/red/g.png": "green", "train/blue/r.png": "red"}
    for target, source in zip(wrong, ("train/red/4.png", "test/green/12.png", "train/red/7.png")):
        shutil.move(gathered / source, gathered / target)
    before = probe(call, "--out", "a.json")
    out = probe(call, "--out", "b.json", "--suspects", "s/own.csv")
    rows = read("s/own.csv")
    assert {r["path"]: r["likely"] for r in rows[:3]} == wrong
    assert [r["split"] for r in rows] == [r["path"].split("/")[0] for r in rows]
    own = [float(r["given_probability"]) for r in rows]
    assert own == sorted(own) and all(float(r["likely_probability"]) > o for r, o in zip(rows, own))
    assert "rot-ä.png: green 0." in out and "-> red" in out and Image.open("s/own.png").size[0] == 900
    agree = float(re.search(r"heads agree with (\S+) of the labels", out)[1])
    assert 0.8 < agree < 42.5 / 45 and agree * 45 == pytest.approx(round(agree * 45), abs=0.03)  # of 45 labels all but the wrong ones
    strip = lambda text: [line for line in text.splitlines() if "suspects" not in line and "s/own" not in line and "wrote" not in line]  # noqa: E731
    assert strip(before) == [line for line in strip(out) if not line.startswith("  t") or ": " not in line or "0." not in line]
    a, b = np.load("a.npz"), np.load("b.npz")
    assert all(np.array_equal(a[key], b[key]) for key in a)


def test_what_lies_between_in_another_split_is_a_neighbour(gathered):
    """Test files 3 and 8 are frames between training files: they share the folds of those."""
    for c in ("red", "green", "blue"):
        for i in (3, 8):
            shutil.move(gathered / "train" / c / f"{i}.png", gathered / "test" / c / f"{i}.png")
    data = load_data("./own")
    images = {split: as_images([np.zeros((2, 2, 3))] * len(data.splits[split])) for split in ("train", "test")}
    for split, part in images.items():
        part.paths = [row[0] for row in data.splits[split]]
    labels = torch.tensor([row[3] for split in images for row in data.splits[split]])
    where, fold = all_in_folds(data, images, labels)
    folds = {images[split].paths[i].split("/", 1)[1]: f for (split, i), f in zip(where, fold)}
    for c in ("red", "green", "blue"):
        assert [folds[f"{c}/{i}.png"] for i in range(15)] == [i // 3 for i in range(15)]
    # groups: odd and even files
    for part in images.values():
        part.groups = [f"{int(path.split('/')[-1][:-4]) % 2}" for path in part.paths]
    _, fold = all_in_folds(data, images, labels)
    odd = np.array([name == "1" for part in images.values() for name in part.groups])
    assert len({*fold[odd]}) == len({*fold[~odd]}) == 1 and fold[odd][0] != fold[~odd][0]


def test_pairs_are_planted_ones(gathered, call):
    train, test = gathered / "train", gathered / "test"
    shutil.copy(train / "red/2.png", train / "red/same.png")  # within train
    ImageOps.mirror(Image.open(train / "green/5.png")).save(test / "green/turned.png")  # across splits
    shutil.copy(train / "blue/1.png", train / "green/other.png")  # across classes, within a split
    Image.open(test / "blue/11.png").save(test / "red/ä.jpg", quality=95)  # nearly the same, across classes
    out = probe(call, "--out", "r/m.json")
    rows = [tuple(r.values()) for r in read("r/m-pairs.csv")]
    assert [r[:6] + r[7:] for r in rows] == [
        ("train/blue/1.png", "train", "blue", "train/green/other.png", "train", "green", "no", "yes"),
        ("test/blue/11.png", "test", "blue", "test/red/ä.jpg", "test", "red", "no", "no"),
        ("train/red/2.png", "train", "red", "train/red/same.png", "train", "red", "no", "yes"),
        ("train/green/5.png", "train", "green", "test/green/turned.png", "test", "green", "yes", "no"),
    ]
    assert "pairs           4   " in out and Image.open("r/m-pairs.png").size[0] == 900
    assert "note: 1 pair of identical pictures with different labels: train/blue/1.png = train/green/other.png\n" in out


def test_the_bench_counts_what_the_script_would_name(world):
    """Of labels as they are some may be named, in vain; of changed ones the shares lie in 0 to 1."""
    sys.path.insert(0, str(ROOT / "bench"))
    import suspects

    data, model = load_data("tiny"), load_model("toy-RN", "cpu", features="penultimate")
    images = data.images(model.size)
    x = {split: model.features(part)[0] for split, part in images.items()}
    true = torch.cat([part.labels for part in images.values()])
    row = suspects.trial(data, images, x, true, model, 0.25, 0)
    assert 0 <= row[0] <= len(true) and all(0 <= share <= 1 for share in (*row[1:3], *row[5:]))
