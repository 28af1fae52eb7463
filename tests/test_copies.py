"""Copies among images: made ones are found, pictures that are drawn anew are none, and blocks change nothing."""

import csv
import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps

import common
import linear_probe
import toy
from common import Images, _clusters as clusters, _load_images as load_images, _read_image as read_image, find_copies, load_data


def as_images(thumbnails, labels=None):
    count = len(thumbnails)
    labels = torch.zeros(count, dtype=torch.long) if labels is None else torch.tensor(labels)
    return Images(None, np.stack(thumbnails), np.arange(count), labels, [f"{i}.png" for i in range(count)], [], "", "")


def scenes(count, seed=0):
    """Smooth random pictures with detail of every size, as photographs have."""
    rng = torch.Generator().manual_seed(seed)
    x = sum(F.interpolate(torch.randn(count, 3, s, s, generator=rng), size=128, mode="bicubic") / s**0.5 for s in (4, 8, 16, 32, 64))
    x = (128 + 60 * x).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(picture) for picture in x]


def jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


KINDS = {
    "same": lambda image: image,
    "mirrored": ImageOps.mirror,
    "resized": lambda image: image.resize((75, 60), Image.Resampling.BILINEAR),
    "jpeg": lambda image: jpeg(image, 40),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "all": lambda image: jpeg(ImageEnhance.Brightness(ImageOps.mirror(image).resize((90, 90))).enhance(1.1), 50),
}


def thumbnails(images, folder):
    result = []
    for i, image in enumerate(images):
        image.save(folder / f"{i}.png")
        result.append(read_image(folder / f"{i}.png", 8)[1])
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_made_copies_are_found_and_named(kind, tmp_path):
    train = thumbnails(scenes(12), tmp_path)
    test = thumbnails([*scenes(5, seed=1), *map(KINDS[kind], scenes(12)[::2])], tmp_path)
    pairs = find_copies(as_images(test), as_images(train))
    assert [(p["test"], p["train"]) for p in pairs] == [(5 + i, 2 * i) for i in range(6)]
    assert all(p["mirrored"] == (kind in ("mirrored", "all")) for p in pairs)


def test_pictures_drawn_anew_are_no_copies():
    drawn = [image for image, _ in toy.draw_many([name for name in toy.TOY[:6] for _ in range(30)], False, seed=7)]
    small = [np.asarray(Image.fromarray(np.asarray(x)).resize((32, 32), Image.Resampling.BILINEAR)) for x in drawn]
    images = as_images(small)
    assert find_copies(images.take(np.arange(0, 180, 2)), images.take(np.arange(1, 180, 2))) == []
    assert len(set(clusters(images).tolist())) == 180


def test_plain_pictures_are_no_copies():
    plain = as_images([np.full((32, 32, 3), v, np.uint8) for v in (0, 77, 77, 255)])
    assert find_copies(plain, plain) == []


def test_blocks_give_the_same_as_all_at_once(tmp_path):
    train = thumbnails(scenes(20), tmp_path)
    test = thumbnails([KINDS["all"](s) for s in scenes(20)] + scenes(3, seed=2), tmp_path)
    labels = [i % 2 for i in range(20)]
    test, train = as_images(test, [0] * 23), as_images([*train, train[4]], [*labels, 1])
    whole, parts = find_copies(test, train), find_copies(test, train, block=7)
    strip = [[{k: v for k, v in p.items() if k != "similarity"} for p in pairs] for pairs in (whole, parts)]
    assert strip[0] == strip[1]
    assert [p["same_label"] for p in whole if p["test"] == 4] == [True, False]  # the same picture under two labels
    assert torch.equal(clusters(train), clusters(train, block=6))


def test_copies_are_looked_for_once_for_all_encoders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.stack(thumbnails(scenes(6), tmp_path))
    train, test = as_images(x[:4], [0, 0, 1, 1]), as_images(x[2:], [1, 1, 0, 0])
    asked = []
    monkeypatch.setattr(common, "find_copies", lambda *args: asked.append(args) or find_copies(*args))
    first = common.kept_copies(test, train, "cpu")
    assert first == find_copies(test, train) != [] and common.kept_copies(test, train, "cpu") == first and len(asked) == 1
    others = [
        (test, replace(train, thumbnails=255 - train.thumbnails)),
        (test, replace(train, labels=1 - train.labels)),
        (test.take([0, 2]), train),
        (train, train),  # of which none is a copy of itself
        (train, replace(train)),
    ]
    for i, pair in enumerate(others):
        assert common.kept_copies(*pair, "cpu") == find_copies(*pair) != first and len(asked) == 2 + i
    for file in (tmp_path / "cache/copies").iterdir():
        file.write_text(file.read_text().replace("0.9", "0.8"))
    assert common.kept_copies(test, train, "cpu") == first and len(asked) == 7


def test_clusters_join_copies_within_a_class_only(tmp_path):
    a, b, c = thumbnails(scenes(3), tmp_path)
    images = as_images([a, b, a[:, ::-1], a, c, b], [0, 0, 0, 1, 1, 0])
    ids = clusters(images).tolist()
    assert ids[0] == ids[2] and ids[1] == ids[5] and len(set(ids)) == 4
    images = replace(images)
    images.groups = ["x", "x", None, "x", None, None]
    ids = clusters(images).tolist()
    assert ids[0] == ids[1] and len(set(ids)) == 5


def test_csv_lies_beside_the_result(world, call):
    shutil.copytree(world / "data" / "tiny", world / "own")
    first, second, *_ = sorted((world / "own" / "Test").iterdir())
    source = sorted((world / "own" / "Training" / first.name).iterdir())[0]
    shutil.copy(source, first / "kopie-ä.jpg")
    shutil.copy(source, second / "wrong.jpg")
    code, out, err = call(linear_probe.main, "--data", "./own", "--model", "toy-RN", "--out", "r/m.json")
    assert code == 0, err
    text = (world / "r" / "m-pairs.csv").read_text(encoding="utf-8")
    rows = [r for r in csv.DictReader(io.StringIO(text)) if r["split_a"] != r["split_b"]]
    train = f"Training/{first.name}/{source.name}"
    assert {r["split_a"] for r in rows} == {"train"} and {r["split_b"] for r in rows} == {"test"}
    assert [(r["b"], r["a"], r["mirrored"], r["label_a"] == r["label_b"]) for r in rows] == [
        (f"Test/{second.name}/wrong.jpg", train, "no", False),
        (f"Test/{first.name}/kopie-ä.jpg", train, "no", True),
    ]
    assert "m-pairs.csv" in out and "wrong.jpg" in out and "wrong label" in out
    code, out, _ = call(linear_probe.main, "--data", "tiny", "--model", "toy-RN", "--out", "r/m.json")
    assert code == 0 and (world / "r" / "m-pairs.csv").read_text().count("\n") == 1  # the heads


def test_simpsons(real, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = load_data(str(real / "simpsons"))
    pairs = find_copies(*(load_images(data, split, 32) for split in ("test", "train")))
    assert len({p["test"] for p in pairs}) == 8 and all(p["same_label"] for p in pairs)
