"""Data sets as people have them: every layout, every kind of file, every defect, and no stale cache."""

import json
import math
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run
from PIL import Image

import common
from common import (
    View,
    _blocked_split as blocked_split,
    _load_images as load_images,
    _read_image as read_image,
    _to_rgb as to_rgb,
    few_tested,
    hold_out,
    load_data,
    natural,
    read_rgb,
    write_json,
)


def picture(path, size=(40, 40), colour=(200, 30, 30), **save):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **save)


def folder_of(root, splits):
    """Files `splits[split][class]` = names, one colour each."""
    for split, classes in splits.items():
        for c, names in classes.items():
            for i, name in enumerate(names):
                picture(root / split / c / name, colour=(10 * i, 100, 50))
    return root


@pytest.mark.parametrize("train, val, test", [("train", "valid", "test"), ("Training", "Validation", "TESTING"), ("Train", "VAL", "Test")])
@pytest.mark.parametrize("wrapper", ["", "fruits-360_dataset/fruits-360"])
def test_splits_are_found_by_name_in_any_case_below_wrappers(tmp_path, train, val, test, wrapper):
    folder_of(tmp_path / wrapper, {s: {"a": ["1.jpg"], "b": ["1.png", "2.png"]} for s in (train, val, test)})
    folder_of(tmp_path / wrapper, {"papers": {}, "test-multiple_fruits": {"": ["x.jpg"]}})
    data = load_data(str(tmp_path))
    assert data.classes == ["a", "b"]
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 3, "val": 3, "test": 3}


def test_classes_are_sorted_and_shared(tmp_path, capsys, monkeypatch):
    """The ids do not depend on the order in which the file system lists folders, nor on which of them a split has."""
    folder_of(tmp_path, {"train": {c: ["1.jpg"] for c in ("pear", "apple", "fig")}, "test": {"pear": ["1.jpg"], "fig": ["1.jpg"]}})
    scandir = os.scandir
    seen = []
    for order in (1, -1):
        monkeypatch.setattr(os, "scandir", lambda path, order=order: sorted(scandir(path), key=lambda e: e.name)[::order])
        data = load_data(str(tmp_path))
        seen.append((data.classes, data.splits))
    assert seen[0] == seen[1]
    assert data.classes == ["apple", "fig", "pear"]
    assert [(row[0], row[3]) for row in data.splits["test"]] == [("test/fig/1.jpg", 1), ("test/pear/1.jpg", 2)]
    assert "no images of 1 class: apple" in capsys.readouterr().out


def test_class_that_training_lacks_is_an_error_or_joins(tmp_path, capsys):
    folder_of(tmp_path, {"train": {"b": ["1.jpg"]}, "test": {"a": ["1.jpg"], "b": ["1.jpg"]}})
    with pytest.raises(SystemExit) as end:
        load_data(str(tmp_path))
    assert end.value.code == 2 and "lacks: a" in capsys.readouterr().err
    data = load_data(str(tmp_path), union=True)
    assert data.classes == ["a", "b"] and [row[3] for row in data.splits["train"]] == [1]


def test_blocked_split_is_contiguous_stratified_seeded():
    labels = [0] * 10 + [1] * 25 + [2] * 2 + [3]
    mask = blocked_split(labels, 0.2, seed=1)
    for c, count in ((0, 2), (1, 5), (2, 1), (3, 0)):
        held = np.flatnonzero(mask & (np.array(labels) == c))
        assert len(held) == count
        assert not count or held[-1] - held[0] == count - 1  # one run
    assert (mask == blocked_split(labels, 0.2, seed=1)).all()
    assert len({tuple(blocked_split(labels, 0.2, seed=s)) for s in range(8)}) > 1


def plain_runs(labels, share, seed):
    """One run of files a class, written down without groups."""
    rng, mask = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for c in np.unique(labels):
        rows = np.flatnonzero(labels == c)
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        start = rng.integers(len(rows) - count + 1)
        mask[rows[start : start + count]] = True
    return mask


def test_without_groups_runs_are_of_files():
    rng = np.random.default_rng(0)
    for seed in range(300):
        labels = rng.integers(0, rng.integers(1, 9), rng.integers(1, 60))
        share = rng.choice([0.05, 0.2, 0.5, 0.9])
        expected = plain_runs(labels, share, seed)
        assert (blocked_split(labels, share, seed) == expected).all()
        one = np.zeros(len(labels), int)  # a group an image is the same; of several classes the order of the draws is another
        assert (blocked_split(one, share, seed, [f"g{i}" for i in range(len(one))]) == plain_runs(one, share, seed)).all()


@pytest.mark.parametrize("shared", [False, True])
def test_groups_are_never_cut(shared):
    """Groups of uneven sizes within classes, or of several classes: whole, in runs, on either side where that can be, about a fifth."""
    rng, shares, lacking = np.random.default_rng(0), [], 0
    for seed in range(200):
        classes = rng.integers(2, 7)
        rows = [(c, f"{c}g{g}") for c in range(classes) for g in range(rng.integers(1, 12)) for _ in range(rng.integers(1, 20))]
        if shared:
            rows += [(c, f"s{g}") for g in range(4) for c in rng.permutation(classes)[:2] for _ in range(9)]
        labels, groups = zip(*sorted(rows))
        labels, groups = np.array(labels), np.array(groups)
        mask = blocked_split(labels, 0.2, seed, groups.tolist())
        assert not {*groups[mask]} & {*groups[~mask]}
        for c in range(classes):
            mine = sorted({*groups[labels == c]}, key=natural)
            assert not mask[labels == c].all()
            lacking += len(mine) > 1 and not mask[labels == c].any()
            if not shared:
                held = [i for i, g in enumerate(mine) if mask[groups == g].all()]
                assert not held or held[-1] - held[0] == len(held) - 1
        shares.append(mask.mean())
        assert (mask == blocked_split(labels, 0.2, seed, groups.tolist())).all()
    assert lacking == 0 and 0.18 < np.mean(shares) < 0.23 and np.std(shares) < 0.06


def test_a_held_out_group_of_two_classes_leaves_both_a_group():
    """Only b's single group could be held out for a, but then nothing would be left to learn b from."""
    labels, groups = [0, 0, 1], ["p1", "p2", "p2"]
    for seed in range(10):
        assert blocked_split(labels, 0.2, seed, groups).tolist() == [True, False, False]


def specimens(root, splits):
    """Four specimens, s1 to s4, of five frames each for a and b, in the split that `splits` names in this order."""
    for split, which in splits.items():
        folder_of(root, {split: {c: [f"s{s}_{i}.jpg" for s in which for i in range(5)] for c in "ab"}})
    return root


def test_groups_are_held_out_whole(tmp_path, capsys, monkeypatch):
    specimens(tmp_path / "d", {"": (1, 2, 10, 3)})
    data = load_data(str(tmp_path / "d"), groups=r"/(s\d+)_")
    assert "4 groups of 40 images: s1, s2, s3" in capsys.readouterr().out
    sides = [{data.groups[path] for path in paths(data, split)} for split in ("train", "test")]
    assert not sides[0] & sides[1] and len(sides[1]) == 1 and len(data.splits["test"]) == 10  # both of its classes
    monkeypatch.chdir(tmp_path)
    images = load_images(data, "train", 64)
    assert images.groups == [data.groups[path] for path in images.paths]
    assert images.take(images.labels.numpy() == 1).groups == images.groups[15:]
    held = hold_out({"train": images}, 0)
    assert not {*held["train"].groups} & {*held["val"].groups} and len(held["val"].rows) == 10
    assert load_images(load_data("d"), "train", 64).groups is None
    # all captures together name a group
    assert set(load_data(str(tmp_path / "d"), groups=r"(\w)/(s\d+)_").groups.values()) == {f"{c}/s{s}" for c in "ab" for s in (1, 2, 3, 10)}


def test_training_images_of_a_group_that_is_tested_are_left_out(tmp_path, capsys):
    specimens(tmp_path, {"train": (1, 2, 3), "val": (3, 4, 5), "test": (2, 5, 6)})
    for i in range(5):  # of a tested specimen, by another name
        picture(tmp_path / "val" / "a" / f"s6_{i}b.jpg")
    data = load_data(str(tmp_path), groups=r"s\d+")
    assert {split: sorted({data.groups[p] for p in paths(data, split)}) for split in data.splits} == {
        "train": ["s1"],
        "val": ["s3", "s4"],
        "test": ["s2", "s5", "s6"],
    }
    out = capsys.readouterr().out
    assert "15 val images left out, because test has images of the same 2 groups: s5, s6" in out
    assert "20 train images left out, because test or val has images of the same 2 groups: s2, s3" in out
    assert len(load_data(str(tmp_path)).splits["train"]) == 30


def test_groups_from_a_csv_file(tmp_path, capsys):
    specimens(tmp_path / "d", {"": (1, 2)})
    rows = [f"{c}/s{s}_{i}.{'png' if c == 'b' else 'jpg'},day {s + (c == 'b')}" for c in "ab" for s in (1, 2) for i in range(5)]
    (tmp_path / "g.csv").write_text("\n".join(["path,group", *rows]), encoding="utf-8-sig")  # as spreadsheets do
    data = load_data(str(tmp_path / "d"), groups=str(tmp_path / "g.csv"))
    assert data.groups["a/s1_0.jpg"] == "day 1" and data.groups["b/s1_4.jpg"] == "day 2" and data.groups["b/s2_4.jpg"] == "day 3"
    assert not {data.groups[p] for p in paths(data)} & {data.groups[p] for p in paths(data, "test")}


@pytest.mark.parametrize(
    "groups, word",
    [
        ("s(1", "neither a regular expression"),
        ("s1_", "no group to 10 images of 20, such as a/s2_0.jpg"),
        ("x?", "no group"),
        ("none.csv", "cannot be read"),
        ("head.csv", "path,group"),
        ("few.csv", "no group to 19 images of 20, such as a/s1_1.jpg"),
        ("twice.csv", "two groups of one image: a/s1_0.jpg"),
        ("[ab]/", "one group a class"),
    ],
)
def test_bad_groups_are_one_line(groups, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    specimens(tmp_path / "d", {"": (1, 2)})
    for name, text in (
        ("head", "a,b\n1,2\n"),
        ("few", "path,group\na/s1_0.jpg,x\n"),
        ("twice", "path,group\na/s1_0.jpg,x\na/s1_0.jpg,y\n"),
    ):
        (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        load_data("d", groups=groups)
    error = capsys.readouterr().err
    assert end.value.code == 2 and word in error and error.count("\n") == 1


def test_no_test_folder_holds_out_runs_in_natural_order(tmp_path, capsys):
    folder_of(tmp_path, {"": {c: [f"{i}.jpg" for i in range(20)] for c in "ab"}})
    data = load_data(str(tmp_path))
    assert "no test folder" in capsys.readouterr().out
    numbers = [int(row[0].split("/")[1].split(".")[0]) for row in data.splits["test"] if row[3] == 0]
    assert len(numbers) == 4 and numbers == list(range(numbers[0], numbers[0] + 4))
    assert not {row[0] for row in data.splits["test"]} & {row[0] for row in data.splits["train"]}
    assert len(data.splits["train"]) == 32


def test_natural_order():
    assert natural("a²3") < natural("a²10")  # a digit that is no number
    assert sorted(["10.jpg", "9.jpg", "r_2.jpg", "2.jpg", "r_10.jpg"], key=natural) == ["2.jpg", "9.jpg", "10.jpg", "r_2.jpg", "r_10.jpg"]


def test_hidden_and_other_files_are_ignored(tmp_path):
    folder_of(tmp_path, {"train": {"a": ["1.jpg"], "b": ["1.jpg"]}, "test": {"a": ["1.jpg"], "b": ["1.jpg"]}})
    for stray in (".DS_Store", "train/.DS_Store", "train/a/.DS_Store", "train/a/._1.jpg", "train/a/notes.txt", "train/labels.csv"):
        (tmp_path / stray).write_text("x")
    picture(tmp_path / "train" / ".ipynb_checkpoints" / "1.jpg")
    data = load_data(str(tmp_path))
    assert data.classes == ["a", "b"] and len(data.splits["train"]) == 2


def test_a_macs_shadow_folder_is_no_data(tmp_path):
    folder_of(tmp_path / "pack", {"train": {"a": ["1.jpg"]}, "test": {"a": ["1.jpg"]}})
    folder_of(tmp_path / "__MACOSX", {"train": {"b": ["1.jpg"]}})
    assert load_data(str(tmp_path)).classes == ["a"]


def test_empty_class_folder_keeps_its_place(tmp_path):
    folder_of(tmp_path, {"train": {"a": ["1.jpg"], "c": ["1.jpg"]}, "test": {"a": ["1.jpg"], "c": ["1.jpg"]}})
    (tmp_path / "train" / "b").mkdir()
    data = load_data(str(tmp_path))
    assert data.classes == ["a", "b", "c"] and [row[3] for row in data.splits["test"]] == [0, 2]


def test_a_class_called_train_is_a_class(tmp_path):
    folder_of(tmp_path, {"": {c: ["1.jpg", "2.jpg"] for c in ("bus", "car", "train")}})
    assert load_data(str(tmp_path)).classes == ["bus", "car", "train"]


def paths(data, split="train"):
    return [row[0] for row in data.splits[split]]


@pytest.mark.parametrize("split", ["train", "wrapper/train", "train/train"])
def test_a_class_holds_its_images_at_any_depth(split, tmp_path, capsys):
    names = ["day2/cam1/11.jpg", "1.jpg", "10.jpg", "2.jpg", "day1/2.jpg", "day1/cam2/3.jpg", "day10/1.jpg"]
    folder_of(tmp_path, {split: {"apple": names, "pear": ["a/b/c/1.jpg"]}, split.replace("train", "test"): {"apple": ["1.jpg"]}})
    (tmp_path / split / "apple" / "day1" / "again").symlink_to(tmp_path / split)
    data = load_data(str(tmp_path))
    order = ["1.jpg", "2.jpg", "10.jpg", "day1/2.jpg", "day1/cam2/3.jpg", "day2/cam1/11.jpg", "day10/1.jpg"]
    assert data.classes == ["apple", "pear"] and [row[3] for row in data.splits["train"]] == [0] * 7 + [1]
    assert paths(data) == [f"{split}/apple/{name}" for name in order] + [f"{split}/pear/a/b/c/1.jpg"]
    assert len(paths(data, "test")) == 1
    assert "left out" not in capsys.readouterr().out


def test_classes_of_a_split_may_hold_folders_only(tmp_path, capsys):
    days = ["day1/1.jpg", "day2/1.jpg"]
    folder_of(tmp_path, {"train": {"apple": days, "pear": days}, "test": {"apple": days[:1]}})
    data = load_data(str(tmp_path))
    assert data.classes == ["apple", "pear"] and len(paths(data)) == 4 and paths(data, "test") == ["test/apple/day1/1.jpg"]
    # the same without splits could as well be data sets of their own
    shutil.rmtree(tmp_path / "test")
    os.rename(tmp_path / "train", tmp_path / "fruits")
    with pytest.raises(SystemExit):
        load_data(str(tmp_path))
    assert "several data sets" in (err := capsys.readouterr().err) and "put them into train/" in err


@pytest.mark.parametrize("wrapper", ["", "pack/fruits"])
def test_beside_a_class_with_images_folders_of_folders_are_classes(wrapper, tmp_path):
    folder_of(tmp_path / wrapper, {"": {"apple": ["day1/1.jpg", "day1/2.jpg"], "pear": ["1.jpg", "2.jpg"]}})
    data = load_data(str(tmp_path))
    assert data.classes == ["apple", "pear"] and len(paths(data)) == len(paths(data, "test")) == 2


def test_splits_in_a_folder_called_like_one(tmp_path):
    folder_of(tmp_path / "training", {"Train": {"a": ["1.jpg"], "b": ["1.jpg"]}, "Test": {"a": ["x/1.jpg"]}})
    data = load_data(str(tmp_path))
    assert data.classes == ["a", "b"] and paths(data, "test") == ["training/Test/a/x/1.jpg"]


def test_a_data_set_within_another_is_an_error(tmp_path, capsys):
    folder_of(tmp_path, {"papers": {"": ["figure.jpg"]}, "pack/train": {"a": ["1.jpg"]}, "pack/test": {"a": ["1.jpg"]}})
    with pytest.raises(SystemExit):
        load_data(str(tmp_path))
    assert "several data sets" in capsys.readouterr().err
    assert load_data(str(tmp_path / "pack")).classes == ["a"]


def test_what_is_left_out_is_counted(tmp_path, capsys):
    folder_of(tmp_path, {"train": {"a": ["1.jpg"], "": ["1.jpg", "2.jpg"]}, "test": {"a": ["1.jpg"]}, "more": {"": ["x.jpg"]}})
    for name in ("train/a/2.HEIC", "train/a/x/3.heic", "test/a/00017", "train/papers/read.me", "train/labels.csv", "train/.DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "train/a/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert load_data(str(tmp_path)).classes == ["a"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert "3 images in no class folder, such as more/x.jpg" in line and "no class, because without images: papers" in line
    assert (
        "2 .heic" in line
        and "(convert .heic to .jpg)" in line
        and all(f"1 {ending}" in line for ending in ("without ending", ".me", ".jpg"))
        and "csv" not in line
    )


def test_splits_that_are_called_otherwise_and_flat_ones_are_named(tmp_path, capsys):
    folder_of(tmp_path / "a", {"train": {"x": ["1.jpg", "2.jpg"], "y": ["1.jpg", "2.jpg"]}, "dev": {"x": ["1.jpg"], "y": ["1.jpg"]}})
    assert sorted(load_data(str(tmp_path / "a")).splits) == ["test", "train"]
    assert "left out: 2 images beside the splits train, val and test, such as dev/x/1.jpg" in capsys.readouterr().out
    folder_of(tmp_path / "b", {"train": {"x": ["1.jpg", "2.jpg"], "y": ["1.jpg", "2.jpg"]}, "test": {"": ["x_1.jpg", "y_1.jpg"]}})
    load_data(str(tmp_path / "b"))
    assert "2 images in no class folder, such as test/x_1.jpg (--label-from reads the classes from names)" in capsys.readouterr().out


def test_letters_that_the_font_lacks_are_one_line(tmp_path, capsys):
    with pytest.warns(UserWarning, match="another") as told, common.all_letters():
        warnings.warn("another", UserWarning, stacklevel=1)
        common.draw_pictures(tmp_path / "a.png", [np.zeros((8, 8, 3), np.uint8)] * 2, ["三果", "苹果"], ["black"] * 2, "title")
    assert len(told) == 1 and capsys.readouterr().out.count("note: letters that matplotlib's font lacks") == 1


def test_links_that_go_round_end(tmp_path, capsys):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "again").symlink_to(tmp_path)
    with pytest.raises(SystemExit):
        load_data(str(tmp_path))


@pytest.mark.parametrize("name, type", [("fruits360", "fruit"), ("birds", "bird"), ("toyota_cars", ""), ("petals", ""), ("mine", "")])
def test_type_is_known_by_the_first_word(tmp_path, name, type):
    folder_of(tmp_path / name, {"train": {"a": ["1.jpg"]}})
    assert load_data(str(tmp_path / name)).type == type
    assert load_data(str(tmp_path / name), type="thing").type == "thing"


def test_names_become_words(tmp_path, capsys):
    folder_of(tmp_path, {"train": {c: ["1.jpg"] for c in ("green_apple", "green-apple", "n01")}})
    (tmp_path / "classnames.json").write_text(json.dumps({"n01": "tench"}))
    data = load_data(str(tmp_path))
    assert dict(zip(data.classes, data.words)) == {"green-apple": "green apple", "green_apple": "green apple", "n01": "tench"}
    assert "all called 'green apple'" in capsys.readouterr().out
    (tmp_path / "classnames.json").write_text("[]")
    with pytest.raises(SystemExit):
        load_data(str(tmp_path))


def test_names_and_texts_are_utf8_in_any_locale(world, tmp_path, monkeypatch):
    """Where Python would take files and names for ASCII: a class, its words, a template."""
    os.remove(world / "data")
    for c, colour in (("Äpfel", "red"), ("Birnen", "green"), ("Müsli", "blue")):
        for i in range(3):
            picture(world / "data/mine/test" / c / f"größe {i}.png", colour=colour)
    (world / "data/mine/classnames.json").write_text(json.dumps({"Äpfel": "grüne Äpfel"}, ensure_ascii=False), encoding="utf-8")
    (world / "t.txt").write_text("süße {}, gemalt\n", encoding="utf-8")
    for key, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(key, value)
    done = run("zero_shot.py", "--data", "mine", "--model", "toy-RN", "--prompts", "t.txt", "--out", "r.json", cwd=world)
    assert done.returncode == 0, done.stderr
    assert "süße {}, gemalt" in done.stdout and ("Äpfel" in done.stdout or "Müsli" in done.stdout)
    record = json.loads((world / "r.json").read_text(encoding="utf-8"))
    assert record["data"]["classes"] == ["Birnen", "Müsli", "Äpfel"] and record["data"]["words"][2] == "grüne Äpfel"


def test_json_has_no_numbers_that_are_not_finite(tmp_path):
    value = {"a": [1.5, math.nan, (math.inf, {"b": -math.inf})], "c": np.float64("nan"), "d": "nan", "e": True, 3: Path("x")}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail) == {
        "a": [1.5, None, [None, {"b": None}]],
        "c": None,
        "d": "nan",
        "e": True,
        "3": "x",
    }


@pytest.mark.parametrize("make, message", [(lambda p: None, "no such folder"), (lambda p: p.mkdir(), "no images in class folders")])
def test_no_data_is_one_line(tmp_path, capsys, make, message):
    make(tmp_path / "x")
    with pytest.raises(SystemExit) as end:
        load_data(str(tmp_path / "x"))
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and error.count("\n") == 1


def test_two_data_sets_below_one_folder_are_not_mixed(tmp_path, capsys):
    for name in ("one", "two"):
        folder_of(tmp_path / name, {"train": {"a": ["1.jpg"]}})
    with pytest.raises(SystemExit):
        load_data(str(tmp_path))
    assert "several data sets" in capsys.readouterr().err


# ---- pixels ---------------------------------------------------------------------------------------------------------


def stripes(mode="RGB"):
    """Left half blue and opaque, right half red and fully transparent."""
    image = Image.new("RGBA", (8, 8), (0, 0, 255, 255))
    image.paste((255, 0, 0, 0), (4, 0, 8, 8))
    return image


def test_transparent_pixels_become_white():
    for image in (stripes(), stripes().convert("RGBa"), stripes().convert("LA")):
        pixels = np.asarray(to_rgb(image))
        assert (pixels[:, 4:] == 255).all() and not (pixels[:, :4] == 255).all()


def test_palette_gif_with_transparency(tmp_path):
    stripes().save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.jpg")  # as one of the real images is named
    pixels, _ = read_image(tmp_path / "a.jpg", 8)
    assert (pixels[:, 5:] == 255).all() and (pixels[:, :3] == (0, 0, 255)).all()


def test_sixteen_bit_grey_cmyk_and_orientation(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    assert np.abs(read_image(tmp_path / "deep.png", 8)[0][..., 0] - ramp / 257).max() <= 0.5
    with pytest.raises(ValueError, match="floating"):
        to_rgb(Image.new("F", (4, 4)))
    for mode in ("L", "1", "P", "CMYK", "YCbCr", "I"):
        assert to_rgb(Image.new(mode, (4, 4))).mode == "RGB"
    assert np.asarray(to_rgb(Image.new("CMYK", (1, 1), (0, 255, 255, 0)))).tolist() == [[[255, 0, 0]]]
    image = Image.new("RGB", (8, 8), "white")
    image.paste((0, 0, 0), (0, 0, 8, 4))  # dark above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.png", exif=exif)
    assert (read_image(tmp_path / "turned.png", 8)[0][4:] == 0).all()


@pytest.mark.parametrize(
    "size, part", [((1024, 768), 8), ((1021, 771), 8), ((512, 384), 4), ((511, 389), 4), ((508, 380), 2), ((191, 190), 1)]
)
@pytest.mark.parametrize("name", ["plain.jpg", "turned.jpg", "progressive.jpg", "two.mpo", "cmyk.jpg", "plain.png"])
def test_a_large_jpeg_is_decoded_in_part_and_looks_the_same(name, size, part, tmp_path):
    """Three times the 32 px are left that a thumbnail needs; the inputs of 16 px need fewer."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)).resize((64, 48), Image.BICUBIC)
    large = small.convert("CMYK" if "cmyk" in name else "RGB").resize(size, Image.BICUBIC)
    how = {"turned.jpg": {"exif": exif}, "progressive.jpg": {"progressive": True}, "two.mpo": {"save_all": True, "append_images": [small]}}
    large.save(tmp_path / name, **how.get(name, {}))
    whole, less = read_rgb(tmp_path / name), read_rgb(tmp_path / name, short=32)
    assert whole.size == (size[::-1] if name == "turned.jpg" else size)
    part = 1 if name == "plain.png" or (name == "turned.jpg" and size[0] % 2) else part
    assert less.size == (-(-whole.width // part), -(-whole.height // part))
    for fit in ("crop", "pad", "squash"):
        exact = part == 1 or (fit == "pad" and size[0] % 2)
        ours = read_image(tmp_path / name, View(16, fit))
        theirs = read_image(tmp_path / name, View(16, fit), lambda path, then, **_: read_rgb(path, then=then))
        for a, b in zip(ours, theirs):
            assert np.abs(a.astype(int) - b).mean() < 1 and np.array_equal(a, b) == bool(exact)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("filled", [(96, 48), (96.5, 49.25), (640.125, 400), (1800, 900)])
def test_what_has_many_pixels_is_reduced_as_pillow_does(filled, interpolation):
    """Noise, and black beside white, are the worst that there is; with three times the pixels and more PyTorch does it."""
    rng, size, apart = np.random.default_rng(0), [math.ceil(side) for side in filled], []
    for values in (256, 2):
        image = Image.fromarray((rng.integers(0, values, (*size[::-1], 3)) * (255 // (values - 1))).astype(np.uint8))
        for to in ((32, 16), (33, 16), (16, 16)):
            ours, pillow = common._resize(image, to, filled, interpolation), Image.Resampling[interpolation.upper()]
            apart.append(np.abs(np.asarray(ours, int) - np.asarray(image.resize(to, pillow, (0, 0, *filled)), int)))
            assert ours.size == to and (apart[-1].max() == 0 or min(filled[0] / to[0], filled[1] / to[1]) >= 3)
    assert 0 < max(x.max() for x in apart) <= 2 and np.mean([x.mean() for x in apart]) < 0.05


def test_broken_images_are_named_skipped_counted(tmp_path, monkeypatch, capsys):
    folder_of(tmp_path / "d", {"train": {c: [f"{i}.jpg" for i in range(5)] for c in "ab"}, "test": {c: ["0.jpg"] for c in "ab"}})
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "d/train/a/2.jpg")
    whole = (tmp_path / "d/train/a/2.jpg").read_bytes()
    (tmp_path / "d/train/a/2.jpg").write_bytes(whole[: len(whole) // 2])  # truncated
    (tmp_path / "d/train/b/3.jpg").write_bytes(b"")
    (tmp_path / "d/train/b/4.jpg").write_text("<html>404</html>")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second time from the cache
        images = load_images(load_data("d"), "train", 64)
        out = capsys.readouterr().out
        assert [name for name, _ in images.skipped] == ["train/a/2.jpg", "train/b/3.jpg", "train/b/4.jpg"]
        assert "d/train/a/2.jpg" in out and "truncated" in out
        assert images.labels.tolist() == [0] * 4 + [1] * 3
        assert len(images.paths) == len(images.rows) == 7
        got = torch.cat(list(images.batches(2))).permute(0, 2, 3, 1).numpy()
        assert (got == [read_image(tmp_path / "d" / p, 40)[0] for p in images.paths]).all()


def test_small_square_images_keep_their_size_others_do_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "d", {"train": {c: ["1.png", "2.png"] for c in "ab"}})
    shutil.copytree(tmp_path / "d", tmp_path / "e")
    picture(tmp_path / "e/train/a/0.png", (60, 44))
    assert load_images(load_data("d"), "train", 64).pixels.shape[1:] == (40, 40, 3)
    assert load_images(load_data("d"), "train", 32).pixels.shape[1:] == (32, 32, 3)
    assert load_images(load_data("e"), "train", 64).pixels.shape[1:] == (64, 64, 3)


def test_a_last_picture_of_another_size_has_all_decoded_anew(tmp_path, monkeypatch):
    """Also where it is as large as the first, or by another process, behind one that is broken; nothing of what was begun stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common, "_ALONE", 0.0)
    folder_of(tmp_path / "d", {"train": {c: [f"{i:02}.png" for i in range(40)] for c in "ab"}, "test": {c: ["1.png"] for c in "ab"}})
    (tmp_path / "d/train/a/00.png").write_bytes(b"")
    picture(tmp_path / "d/train/b/39.png", (40, 44))
    made = [load_images(load_data("d"), "train", 64) for _ in range(2)]
    assert made[0].key == made[1].key and made[0].pixels.shape == (80, 64, 64, 3) and len(made[0].skipped) == 1
    assert (made[0].pixels[-1] == read_image(tmp_path / "d/train/b/39.png", 64)[0]).all()
    assert sorted(path.name.split("-")[2] for path in (tmp_path / "cache/images").glob("*.npy")) == ["64", "64"]
    picture(tmp_path / "d/train/b/39.png", (40, 40))
    assert load_images(load_data("d"), "train", 64).pixels.shape == (80, 40, 40, 3)


def test_decoded_cache_is_keyed_by_path_size_mtime_and_stored_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "d", {"train": {"a": ["1.png", "2.png"]}, "test": {"a": ["1.png"]}})
    file = tmp_path / "d/train/a/1.png"

    def key(size=64):
        data = load_data("d")
        return load_images(data, "train", size).key, data.fingerprint

    start = key()
    assert key() == start
    os.utime(file, ns=(1, 1))
    touched = key()
    picture(file, colour=(1, 2, 3), compress_level=0)
    os.utime(file, ns=(1, 1))
    grown = key()
    file = file.with_name("2.png").rename(file.with_name("3.png"))  # in the same order, of the same size and time
    renamed = key()
    keys = [start, touched, grown, renamed]
    assert len({f for _, f in keys}) == 4
    assert len({k for k, _ in keys}) == 3 and start[0] == touched[0]  # the same pixels
    assert key(32)[0] != renamed[0]
    # the pixels follow: no stale cache
    images = load_images(load_data("d"), "train", 64)
    assert (images.pixels[images.paths.index("train/a/1.png")] == (1, 2, 3)).all()


def test_same_files_in_two_places_are_two_data_sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place, colour in (("A", (0, 0, 0)), ("B", (255, 255, 255))):
        folder = tmp_path / place / "pets" / "train" / "a"
        for name in ("1.bmp", "2.bmp"):
            picture(folder / name, colour=colour)
            os.utime(folder / name, ns=(1, 1))
    seen = [load_images(load_data(f"{place}/pets"), "train", 64) for place in "AB"]
    assert [int(images.pixels.mean()) for images in seen] == [0, 255]


def test_a_failing_disk_is_not_remembered(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "d", {"train": {"a": ["1.png", "2.png"]}, "test": {"a": ["1.png"]}})
    with monkeypatch.context() as patch:
        patch.setattr(common, "_read_image", lambda *_: (_ for _ in ()).throw(OSError(24, "Too many open files")))
        with pytest.raises(SystemExit) as end:
            load_images(load_data("d"), "train", 64)
        error = capsys.readouterr().err
        assert end.value.code == 2 and "Too many open files" in error and error.count("\n") == 1
    assert not load_images(load_data("d"), "train", 64).skipped


def test_an_interrupted_decoding_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "d", {"train": {"a": ["1.png", "2.png"]}})
    with monkeypatch.context() as patch:
        patch.setattr(common, "progress", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            load_images(load_data("d"), "train", 64)
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_real_folders(real, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counts = {"fruits360": (95, 5700, 1900), "sports": (100, 800, 300), "birds": (132, 396, 264), "simpsons": (6, 308, 100)}
    for name, (classes, train, test) in counts.items():
        data = load_data(str(real / name))
        assert (len(data.classes), len(data.splits["train"]), len(data.splits["test"])) == (classes, train, test)
    images = load_images(load_data(str(real / "simpsons")), "test", 64)
    assert not images.skipped and len(images.rows) == 100


def test_classes_of_one_or_two_test_images_are_named(world, call):
    assert few_tested(torch.tensor([0, 1, 1, 2, 2, 2, 4]), ["a", "b", "c", "none", "d"]) == ["a", "b", "d"]
    import zero_shot

    shutil.copytree(world / "data" / "tiny", world / "own")
    assert "judged on" not in call(zero_shot.main, "--data", "./own", "--model", "toy-RN")[1]
    first, second = sorted((world / "own" / "Test").iterdir())[:2]
    for folder, keep in ((first, 1), (second, 2)):
        for file in sorted(folder.iterdir())[keep:]:
            file.unlink()
    out = call(zero_shot.main, "--data", "./own", "--model", "toy-RN")[1]
    assert f"note: 2 classes judged on one or two test images: {first.name}, {second.name}\n" in out


def test_splits_are_no_classes(tmp_path):
    for split in ("train", "test"):
        picture(tmp_path / "flat" / split / "apple_1.png")
    with pytest.raises(SystemExit):
        load_data(str(tmp_path / "flat"))
    assert load_data(str(tmp_path / "flat"), label_from="[a-z]+").classes == ["apple"]
