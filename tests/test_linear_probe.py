"""linear_probe.py: against scikit-learn, by its gradient, and what chooses and reports."""

import json
import shutil
from contextlib import nullcontext

import clip
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

import common
import linear_probe
from common import _load_images as load_images, load_data, load_model, product, read_weights
from linear_probe import accuracy, class_means, equal_classes, logistic_regression, loss_and_gradient, sweep


@pytest.fixture(scope="module")
def blobs():
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 12, generator=rng)
    y = torch.arange(5).repeat_interleave(40)
    x = centres[y] + 1.5 * torch.randn(200, 12, generator=rng)
    return x[::2], y[::2], x[1::2], y[1::2]


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_same_solution_as_scikit_learn(blobs, l2):
    x, y, x_test, y_test = blobs
    x, x_test = x.double(), x_test.double()
    weight, bias = logistic_regression(x, y, l2, x.new_zeros(5, 12), x.new_zeros(5))
    theirs = LogisticRegression(C=1 / (l2 * len(y)), tol=1e-8, max_iter=10_000).fit(x.numpy(), y.numpy())
    assert torch.allclose(weight, torch.from_numpy(theirs.coef_), atol=0.01 * weight.abs().max().item())
    assert torch.allclose(bias - bias.mean(), torch.from_numpy(theirs.intercept_ - theirs.intercept_.mean()), atol=0.02)
    assert accuracy(x_test, y_test, weight, bias) == pytest.approx(theirs.score(x_test.numpy(), y_test.numpy()))


def test_gradient_vanishes_at_the_solution_and_the_bias_is_free(blobs):
    x, y, *_ = blobs
    x = x.double() + 3  # an offset that a penalised bias could not follow
    weight, bias = logistic_regression(x, y, 0.1, x.new_zeros(5, 12), x.new_zeros(5))
    error = (x @ weight.T + bias).softmax(1) - F.one_hot(y, 5)
    assert (error.T @ x / len(y) + 0.1 * weight).abs().max() < 1e-4
    assert error.mean(0).abs().max() < 1e-4


@pytest.mark.parametrize("block", [2**24, 33])
def test_loss_and_gradient_are_those_of_autograd_however_the_images_are_cut(blobs, monkeypatch, block):
    x, y, *_ = (t.double() if t.is_floating_point() else t for t in blobs)
    rng = torch.Generator().manual_seed(1)
    weight, bias = (torch.randn(*shape, generator=rng, dtype=torch.double, requires_grad=True) for shape in ((5, 12), (5,)))
    loss = F.cross_entropy(x @ weight.T + bias, y) + 0.3 / 2 * weight.square().sum()
    loss.backward()
    monkeypatch.setattr(linear_probe, "BLOCK", block)  # 6 rows at a time, and 4 at last
    ours = loss_and_gradient(x, y, 0.3, weight.detach(), bias.detach())
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(ours, (loss.detach(), weight.grad, bias.grad)))


def test_loss_never_holds_all_logits(monkeypatch):
    monkeypatch.setattr(linear_probe, "BLOCK", 1000)
    largest, real = [], torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *args, **scale: largest.append(real(*args).numel()) or real(*args, **scale))
    x, y, weight, bias = torch.randn(300, 8), torch.arange(300) % 50, torch.zeros(50, 8), torch.zeros(50)
    logistic_regression(x, y, 0.1, weight, bias, steps=3)
    accuracy(x, y, weight, bias)
    assert max(largest) == 1000 < 300 * 50


def test_largest_penalty_is_the_class_mean_and_frequencies_have_no_say():
    rng = torch.Generator().manual_seed(3)
    centres = F.normalize(torch.randn(4, 20, generator=rng), dim=1)
    draw = lambda y: (2 * centres[y] + torch.randn(len(y), 20, generator=rng), y)  # noqa: E731
    x, y = draw(torch.arange(4).repeat_interleave(50))
    x = x - x.mean(0)
    weight, bias = equal_classes(y, *logistic_regression(x, y, 1e3, torch.zeros(4, 20), torch.zeros(4)))
    means = torch.stack([x[y == c].mean(0) for c in range(4)])
    assert torch.allclose(F.normalize(weight, dim=1), F.normalize(means, dim=1), atol=0.01)
    assert bias.abs().max() < 1e-3 * (x @ weight.T).abs().max()
    # of unequal classes the head that knows its frequencies, less these, is the one whose logits were shifted while it learnt
    x, y = draw(torch.arange(4).repeat_interleave(torch.tensor([100, 40, 10, 5])))
    fitted = logistic_regression(x, y, 0.1, torch.zeros(4, 20), torch.zeros(4))
    weight, bias = equal_classes(y, *fitted)
    prior = (torch.bincount(y) / len(y)).log()
    error = (x @ weight.T + bias + prior).softmax(1) - F.one_hot(y, 4)
    assert weight is fitted[0] and error.mean(0).abs().max() < 1e-4
    assert (bias - fitted[1]).argsort().tolist() == [0, 1, 2, 3]


def test_held_out_images_say_whether_frequencies_count():
    """Bayes' classifier is the nearest centre; classes have 4 to 100 training images, and are met equally often, or so too."""
    rng = torch.Generator().manual_seed(0)
    counts = torch.tensor([100, 70, 50, 35, 24, 16, 12, 8, 6, 4])
    for _ in range(3):
        centres = F.normalize(torch.randn(10, 64, generator=rng), dim=1)
        draw = lambda y: (4 * centres[y] + torch.randn(len(y), 64, generator=rng), y)  # noqa: E731, B023
        x, y = draw(torch.arange(10).repeat_interleave(counts))
        chosen = {}
        for name, often in (("equal", torch.full((10,), 20)), ("alike", counts)):
            val, test = (draw(torch.arange(10).repeat_interleave(n * often)) for n in (1, 5))
            fits = sweep([(x, y, *val)], 10, linear_probe.PENALTIES)
            best = max(fits, key=lambda fit: fit["val"])
            kept = logistic_regression(x, y, best["l2"], torch.zeros(10, 64), torch.zeros(10))
            values = [accuracy(*test, *head) for head in (kept, equal_classes(y, *kept))]
            chosen[name] = best["frequencies"]
            assert accuracy(*test, *best["heads"][0]) > max(values) - 0.02, name
            assert name == "alike" or values[1] > values[0] + 0.02
        assert not chosen["equal"]


def test_sweep_goes_from_strong_to_weak_and_does_not_touch_its_input(blobs):
    x, y, x_val, y_val = blobs
    fits = sweep([(x, y, x_val, y_val), (x_val, y_val, x, y)], 5, linear_probe.PENALTIES)
    assert max(linear_probe.PENALTIES) / min(linear_probe.PENALTIES) >= 1e7 * 0.999
    assert [f["l2"] for f in fits] == sorted(linear_probe.PENALTIES, reverse=True)[: len(fits)]
    norms = [f["heads"][0][0].norm().item() for f in fits]
    assert norms == sorted(norms)  # each fit has weights of its own, larger where the penalty is smaller
    weight, bias = logistic_regression(x, y, fits[3]["l2"], torch.zeros(5, 12), torch.zeros(5))
    assert torch.allclose(fits[3]["heads"][0][0], weight, atol=0.02)
    other = logistic_regression(x_val, y_val, fits[3]["l2"], torch.zeros(5, 12), torch.zeros(5))
    assert fits[3]["val"] == pytest.approx((accuracy(x_val, y_val, weight, bias) + accuracy(x, y, *other)) / 2)


def test_a_sweep_of_unfinished_fits_chooses_as_well(monkeypatch):
    """Classes that differ in a few of many directions, whose variances fall by a factor of 1,000, as those of an encoder's features do."""
    rng, spread, tested = torch.Generator().manual_seed(0), torch.logspace(0, -1.5, 64), {}
    for trial in range(9):
        classes, images = [(10, 20), (5, 8), (20, 6)][trial % 3]
        centres = 0.6 * torch.randn(classes, 64, generator=rng) * spread
        draw = lambda n: (  # noqa: E731
            (centres.repeat_interleave(n, 0) + torch.randn(classes * n, 64, generator=rng) * spread) / spread.square().mean().sqrt(),  # noqa: B023
            torch.arange(classes).repeat_interleave(n),  # noqa: B023
        )
        train, val, (x, y) = draw(images), draw(max(2, images // 5)), draw(50)
        for change in (linear_probe.CHANGE, 1e-9):
            monkeypatch.setattr(linear_probe, "CHANGE", change)
            best = max(sweep([(*train, *val)], classes, linear_probe.PENALTIES), key=lambda fit: fit["val"])
            start = torch.zeros(classes, 64), torch.zeros(classes)
            tested.setdefault(change, []).append(accuracy(x, y, *logistic_regression(*train, best["l2"], *start)))
        monkeypatch.undo()
    ours, whole = (torch.tensor(values) for values in tested.values())
    assert 0.5 < whole.mean() < 0.95 and abs(ours.mean() - whole.mean()) < 0.01


def test_sweep_ends_where_all_held_out_images_are_named_right(blobs):
    x, y, x_val, y_val = blobs
    mine = torch.zeros(5, 12).index_add_(0, y, x)[y_val]  # held-out images at the centres of their classes
    val = [fit["val"] for fit in sweep([(x, y, mine, y_val)], 5, linear_probe.PENALTIES)]
    assert val[-1] == 1 and max(val[:-1], default=0) < 1 and len(val) < 5


def test_sweep_ends_where_held_out_images_have_had_enough(blobs):
    x, y, x_val, y_val = blobs
    noisy = torch.where(torch.rand(100, generator=torch.Generator().manual_seed(0)) < 0.3, (y + 1) % 5, y)  # small penalties fit these
    fits = sweep([(x, noisy, x_val, y_val)], 5, linear_probe.PENALTIES)
    val = [f["val"] for f in fits]
    best = max(val)
    ended = len(fits) < len(linear_probe.PENALTIES)
    assert ended and all(v < best for v in val[-linear_probe.FALLS :]) and val[-linear_probe.FALLS - 1] == best


def test_the_nearest_class_mean_as_a_head(blobs):
    x, y, x_test, _ = blobs
    x, x_test = x + 3, x_test + 3
    other = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)), torch.zeros(5)
    weight, bias = linear_probe.nearest_mean(x, y, *other)
    cosines = F.normalize(x_test, dim=1) @ class_means(x, y, 5).T
    logits, theirs = x @ weight.T + bias, x @ other[0].T
    assert torch.equal((x_test @ weight.T + bias).argmax(1), cosines.argmax(1)) and not bias.any()
    spread, wanted = (t.std(1, correction=0).square().mean().sqrt().item() for t in (logits, theirs))
    assert spread == pytest.approx(wanted, rel=1e-3)


def test_held_out_images_choose_the_nearest_class_mean_where_it_is_better(world, call, monkeypatch):
    """Of a logistic regression that learns nothing."""
    monkeypatch.setattr(linear_probe, "logistic_regression", lambda x, y, l2, weight, bias, **more: (0 * weight, 0 * bias))
    record, out = probe(call, "--data", "tiny")
    m = record["metrics"]
    assert m["l2"] is None and m["top1"] == m["class_mean"] and m["val"] == m["class_mean_val"]
    assert "the nearest class mean is taken for the probe" in out


def test_class_means(blobs):
    x, y, *_ = blobs
    for c, mean in enumerate(class_means(x, y, 5)):
        rows = x[y == c].numpy()
        rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(0)
        assert np.allclose(mean, rows / np.linalg.norm(rows), atol=1e-5)


@pytest.mark.parametrize("name", ["toy-ViT", "toy-RN"])
def test_penultimate_features_are_those_before_the_projection(name, world):
    data = load_data("tiny")
    whole = load_model(name, "cpu", precision="float32")
    before = load_model(name, "cpu", precision="float32", features="penultimate")
    images = load_images(data, "test", whole.size)
    x, y = before.features(images), whole.features(images)[0]
    net = clip.load(f"weights/{name}.pt", device="cpu")[0].visual
    projected = x[0] @ net.proj if name == "toy-ViT" else net.attnpool.c_proj(x[0])
    assert x[0].shape[1] == before.width and y.shape[1] == whole.width and not torch.equal(x[0], y)
    assert torch.allclose(projected, y, atol=1e-4 * y.abs().max().item())


# ---- the script -----------------------------------------------------------------------------------------------------


def probe(call, *args):
    code, out, err = call(linear_probe.main, "--model", "toy-RN", "--out", "r.json", *args)
    assert code == 0, err
    return json.loads(open("r.json").read()), out


def test_record_head_and_predictions_agree(world, call):
    record, out = probe(call, "--data", "tiny", "--save", "head.safetensors")
    m = record["metrics"]
    assert set(m) >= {"train", "val", "top1", "top1_ci95", "top1_ci95_other_classes", "mean_per_class", "l2", "near_copies"}
    assert "test_without_near_copies" in m and record["labels_used"] == 32 and 3 < len(record["history"]) <= len(linear_probe.PENALTIES)
    best = max(step["val"] for step in record["history"])
    assert m["val"] == max(best, m["class_mean_val"])
    if best > m["class_mean_val"]:
        assert m["l2"] == next(step["l2"] for step in record["history"] if step["val"] == best)
    else:
        assert m["l2"] is None and m["top1"] == m["class_mean"]
    saved = np.load(world / "r.npz")
    assert (saved["true"] == saved["predicted"]).mean() == pytest.approx(m["top1"])
    with safe_open("head.safetensors", "pt") as file:
        weight, bias, about = file.get_tensor("head.weight"), file.get_tensor("head.bias"), json.loads(file.metadata()["about"])
    model = load_model("toy-RN", features=about["features"])
    weight, bias = (t.to(model.device) for t in (weight, bias))
    data, x, y = load_data("tiny"), {}, {}
    for split, name in (("train", "train"), ("test", "top1")):
        x[split], y[split] = model.features(load_images(data, split, model.size))
        assert ((x[split] @ weight.T + bias).argmax(1) == y[split]).double().mean().item() == pytest.approx(m[name])
    nearest = (F.normalize(x["test"], dim=1) @ class_means(x["train"], y["train"], len(data.classes)).T).argmax(1)
    assert m["class_mean"] == pytest.approx((nearest == y["test"]).double().mean().item())
    assert ("the probe stays" in out) == (m["l2"] is not None) and ("the nearest class mean is taken" in out) == (m["l2"] is None)
    assert about["classes"] == data.classes and about["words"] == data.words
    assert about["model"] == "toy-RN" and about["sha256"] == model.sha256 and about["prompts"] == ["a photo of a {}."]
    for word in (
        "penalty",
        "held-out",
        "train",
        "val",
        "class mean",
        "copies",
        "top-1",
        "most confused",
        "saved head.safetensors",
    ):
        assert word in out


def test_groups_are_held_out_whole(world, call):
    """Of eight images a class one is a group and seven are another: the one is nearer to a fifth."""
    record, out = probe(call, "--data", "tiny", "--groups", r"^(\w+/[^/]+/(?:0\.)?)")
    assert " on 4 held-out training images" in out and record["args"]["groups"].startswith("^")
    assert " on 8 held-out training images" in probe(call, "--data", "tiny")[1]


def test_test_images_have_no_say(world, call):
    shutil.copytree(world / "data" / "tiny", world / "own")
    before, _ = probe(call, "--data", "./own", "--save", "a.safetensors")
    for file in (world / "own" / "Test").rglob("*.jpg"):
        Image.open(file).rotate(90).save(file)
    after, _ = probe(call, "--data", "./own", "--save", "b.safetensors")
    assert before["history"] == after["history"] and before["metrics"]["l2"] == after["metrics"]["l2"]
    a, b = load_file("a.safetensors"), load_file("b.safetensors")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert read_weights("a.safetensors")[0] == read_weights("b.safetensors")[0]  # nor in the confidence
    assert before["metrics"]["mean_per_class"] != after["metrics"]["mean_per_class"]


def test_validation_images_choose_where_there_are_some(world, call):
    shutil.copytree(world / "data" / "tiny", world / "own")
    shutil.copytree(world / "own" / "Test", world / "own" / "valid")
    record, out = probe(call, "--data", "./own")
    assert record["data"]["counts"] == {"train": 32, "val": 32, "test": 32} and record["labels_used"] == 64
    assert record["metrics"]["val"] == record["metrics"]["top1"] and "32 images of the val split" in out  # the same pictures
    for file in (world / "own" / "Test").rglob("*.jpg"):
        Image.open(file).rotate(90).save(file)
    again, _ = probe(call, "--data", "./own")
    assert again["history"] == record["history"] and again["metrics"]["top1"] != record["metrics"]["top1"]


def test_held_out_images_are_not_fitted(world, call, monkeypatch):
    runs, seen = [], []
    real = linear_probe.logistic_regression
    real_sweep = linear_probe.sweep
    monkeypatch.setattr(linear_probe, "sweep", lambda given, *rest: runs.extend(given) or real_sweep(given, *rest))
    monkeypatch.setattr(
        linear_probe, "logistic_regression", lambda x, y, *rest, **more: seen.append((len(y), x.sum().item())) or real(x, y, *rest, **more)
    )
    probe(call, "--data", "tiny")
    assert len({total for _, total in seen[:5]}) == 5  # each run holds out others
    everything = sorted(map(tuple, torch.cat([runs[0][0], runs[0][2]]).tolist()))
    for x, y, x_val, y_val in runs:
        assert sorted(map(tuple, torch.cat([x, x_val]).tolist())) == everything and len(y) == 24 and len(y_val) == 8
        assert not set(map(tuple, x.tolist())) & set(map(tuple, x_val.tolist()))
    # 8 images a class, 2 of them held out, five times with each penalty; then all
    assert [n for n, _ in seen] == [24] * (len(seen) - 1) + [32] and len(seen) % 5 == 1


def test_near_copies_are_a_property_of_the_data(world, call):
    shutil.copytree(world / "data" / "tiny", world / "own")
    for seed, c in enumerate(sorted((world / "own" / "Test").iterdir())):
        rng = np.random.default_rng(seed)
        for i in range(40):
            noise = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
            noise.save(c / f"noise{i}.png")
        for file in sorted((world / "own" / "Training" / c.name).iterdir())[:5]:
            shutil.copy(file, c / f"copy-{file.name}")
    shares = []
    for model in ("toy-RN", "toy-imagenet"):
        record, out = probe(call, "--data", "./own", "--model", model)
        shares.append(record["metrics"]["near_copies"])
    assert shares[0] == shares[1] >= 20 / 212 and record["metrics"]["test_without_near_copies"] is not None
    for c in (world / "own" / "Test").iterdir():  # 5 copies and 5 others of each class stay
        for file in [f for f in c.iterdir() if not f.name.startswith(("copy", "noise0", "noise1.", "noise2.", "noise3.", "noise4."))]:
            file.unlink()
    record, out = probe(call, "--data", "./own")
    assert record["metrics"]["near_copies"] == 0.5 and record["metrics"]["test_without_near_copies"] is None
    assert "too few left   20 images" in out


@pytest.mark.parametrize("batch", [(), (1,), (3,)])
def test_products_of_large_matrices_are_exact_and_leave_torch_as_it_was(batch):
    rng = torch.Generator().manual_seed(0)
    a, b, plus = (torch.randn(*batch, *shape, generator=rng) for shape in ((95, 700), (500, 700), (95, 500)))
    b, before = b.transpose(-1, -2), getattr(torch.backends.mkldnn, "matmul", None)
    setting = before and before.fp32_precision
    assert a.numel() * b.shape[-1] > common._LARGE
    for found, exact in [
        (product(a, b), a.double() @ b.double()),
        (product(a, b, plus, 0.5), plus.double() + 0.5 * a.double() @ b.double()),
    ]:
        assert found.dtype == torch.float32 and found.shape == exact.shape
        assert (found - exact).abs().max() < 5e-4  # of sums of 700 products; rounded to 16 bits they are .5 off
    with pytest.raises(RuntimeError):
        product(a, b.transpose(-1, -2))
    assert not before or before.fp32_precision == setting


def test_products_that_would_be_rounded_are_not_asked_for(monkeypatch):
    monkeypatch.setattr(common, "_elsewhere", lambda: torch.autocast("cpu", torch.bfloat16))
    monkeypatch.setattr(common, "_exact_elsewhere", common._exact_elsewhere.__wrapped__)
    assert not common._exact_elsewhere()
    a = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    assert product(a, a).equal(a @ a)
    monkeypatch.setattr(common, "_elsewhere", nullcontext)
    assert not hasattr(torch.backends.mkldnn, "matmul") or common._exact_elsewhere()


def test_bad_input_is_one_line(world, call):
    def line(*args):
        code, _, err = call(linear_probe.main, *args)
        assert code == 2 and "Traceback" not in err
        return err.splitlines()[-1]

    assert "--features projected" in line("--data", "tiny", "--model", "toy-imagenet", "--features", "projected")
    assert "head.bin" in line("--data", "tiny", "--save", "head.bin")
    assert "--save" in line("--data", "tiny", "--model", "toy-RN", "--prompts", "a {}.")
    (world / "file").write_text("")
    for place in ("file/head.safetensors", "/proc/head.safetensors"):
        assert place in line("--data", "tiny", "--model", "toy-RN", "--save", place, "--out", "kept.json")
        assert not (world / "kept.json").exists()  # it is said before the work
    shutil.copytree(world / "data" / "tiny", world / "own")
    folder = sorted((world / "own" / "Training").iterdir())[1]
    for file in folder.iterdir():
        file.write_bytes(b"no picture")
    assert folder.name in line("--data", "./own", "--model", "toy-RN")
    for c in (world / "own" / "Training").iterdir():
        for i, file in enumerate(sorted(c.iterdir())):
            shutil.copy(world / "data" / "tiny" / "Training" / c.name / file.name, file) if i == 0 else file.unlink()
    assert "few_shot.py" in line("--data", "./own", "--model", "toy-RN")
