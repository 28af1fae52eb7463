"""few_shot.py: draws, and each method against an independent reference or a limit that is known."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression

import few_shot
import prompts
import zero_shot
from common import _load_images as load_images, load_data
from few_shot import GRADIENT, calibrate, class_mean, draw, linear, parts, pulled, right_or_wrong, text_init, tip

LABELS = np.repeat(np.arange(4), [9, 3, 20, 6])


def test_draws_are_nested_and_never_repeat_an_image():
    for seed in range(3):
        smaller = set()
        for k in (1, 2, 4, 8, 16, 32):
            rows = draw(LABELS, k, seed)
            assert len(set(rows)) == len(rows) and smaller <= set(rows)
            assert np.bincount(LABELS[rows]).tolist() == [min(k, n) for n in (9, 3, 20, 6)]
            smaller = set(rows)
    assert draw(LABELS, 2, 0).tolist() == draw(LABELS, 2, 0).tolist() != draw(LABELS, 2, 1).tolist()


def test_draws_do_not_depend_on_the_file_system(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"{c}/{i}.png" for c in "ab" for i in range(12)]
    drawn = []
    for root, order in (("x", names), ("y", names[::-1])):
        for name in order:
            path = tmp_path / root / "train" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (int(name[2:-4]), 0, 0)).save(path)
            shutil.copytree(tmp_path / root / "train", tmp_path / root / "test", dirs_exist_ok=True)
        images = load_images(load_data(f"./{root}"), "train", 8)
        drawn.append([images.paths[i] for i in draw(images.labels.numpy(), 3, 0)])
    assert drawn[0] == drawn[1] and len(drawn[0]) == 6


@pytest.fixture(scope="module")
def problem():
    """Five draws of 3 images of 6 classes, 40 wide, so that 18 + 6 < 40; test images; class embeddings."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 40, generator=rng)
    y = torch.arange(6).repeat_interleave(3)
    x = F.normalize(1 + centres[y] + 1.5 * torch.randn(5, 18, 40, generator=rng), dim=2)
    y_test = torch.arange(6).repeat_interleave(50)
    x_test = F.normalize(1 + centres[y_test] + 1.5 * torch.randn(300, 40, generator=rng), dim=1)
    z = F.normalize(centres + 1.5 * torch.randn(6, 40, generator=rng), dim=1)
    return x, y, x_test, y_test, z


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """What is to be equal is compared at its end, not where a fit is given up."""
    monkeypatch.setattr(few_shot, "GRADIENT", 1e-5)


def solve(name, x, y, x_test, z):
    return (linear(x, y, len(z)) if name == "linear" else text_init(x, y, z))(x_test)


@pytest.mark.parametrize("name", ["linear", "text-init"])
def test_all_draws_at_once_are_one_by_one(name, problem):
    x, y, x_test, _, z = problem
    at_once = solve(name, x, y, x_test, z)
    one_by_one = torch.cat([solve(name, part[None], y, x_test, z) for part in x])
    assert torch.allclose(at_once, one_by_one, atol=0.02 * at_once.abs().max().item())
    assert (at_once.argmax(2) == one_by_one.argmax(2)).double().mean() > 0.995


@pytest.mark.parametrize("name", ["linear", "text-init"])
def test_the_problem_in_the_span_of_its_images_is_the_whole_problem(name, problem, monkeypatch):
    x, y, x_test, _, z = problem
    small = solve(name, x, y, x_test, z)
    assert few_shot.span(x).shape == (5, 40, 18) and few_shot.span(x.repeat(1, 3, 1)) is None
    monkeypatch.setattr(few_shot, "span", lambda *_: None)
    assert torch.allclose(small, solve(name, x, y, x_test, z), atol=0.01 * small.abs().max().item())


@pytest.mark.parametrize("name", ["linear", "text-init", "tip", "class-mean"])
def test_blocks_change_nothing(name, problem, monkeypatch):
    x, y, x_test, y_test, z = problem
    methods = {"linear": lambda x, y: linear(x, y, 6), "text-init": lambda x, y: text_init(x, y, z)}
    methods |= {"tip": lambda x, y: tip(x, y, z, 20.0), "class-mean": lambda x, y: class_mean(x, y, 6)}
    whole = right_or_wrong(methods[name], x, y, x_test, y_test, 6)
    monkeypatch.setattr(few_shot, "BLOCK", 5 * 6 * 7)  # 7 images at a time
    assert whole.shape == (5, 300) and (right_or_wrong(methods[name], x, y, x_test, y_test, 6) == whole).double().mean() > 0.995


def test_linear_is_scikit_learns(problem):
    x, y, x_test, y_test, _ = problem
    for part, logits in zip(x, linear(x, y, 6, l2=1e-3)(x_test)):
        mean = part.mean(0)
        ours, theirs = (np.pad(F.normalize(t - mean, dim=1).double(), ((0, 0), (0, 1)), constant_values=1) for t in (part, x_test))
        fit = LogisticRegression(C=1 / (1e-3 * len(y)), tol=1e-8, max_iter=10_000, fit_intercept=False).fit(ours, y)
        theirs = fit.decision_function(theirs)
        ours = logits.numpy() - logits.numpy().mean(1, keepdims=True)
        assert np.allclose(ours, theirs - theirs.mean(1, keepdims=True), atol=0.05)
        assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.99
        assert (ours.argmax(1) == y_test.numpy()).mean() > 0.7


def test_text_init_holds_zero_shot_and_linear(problem):
    x, y, x_test, _, z = problem
    zero = zero_shot.zero_shot(x_test, z, 20.0)
    firm = pulled(x, y, z, torch.full((5, 1, 1), 20.0), 1e4)(x_test)
    assert (firm.argmax(2) == zero.argmax(1)).double().mean() > 0.95  # the same but for the length of an image
    assert torch.equal(text_init(x, y, z, trust=(0.0, 0.0))(x_test), linear(x, y, 6)(x_test))


def test_pulled_minimises_what_it_says(problem):
    x, y, x_test, _, z = problem
    x, x_test, z = x[0].double(), x_test.double(), z.double()
    mean = x.mean(0)
    size = (x - mean).norm(dim=1).mean()
    one = lambda t: torch.cat([F.normalize(t - mean, dim=1), torch.ones(len(t), 1)], 1)  # noqa: E731
    origin = torch.cat([7 * size * z.T, 7 * (mean @ z.T)[None]])
    w = origin.clone().requires_grad_()
    optimiser = torch.optim.Adam([w], 0.01)
    for _ in range(1500):
        loss = F.cross_entropy(one(x) @ w, y) + 0.02 / 2 * (w - origin).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    ours = pulled(x[None], y, z, torch.full((1, 1, 1), 7.0), 0.02)(x_test)[0]
    assert torch.allclose(ours, (one(x_test) @ w).detach(), atol=0.05)


def test_calibrate_finds_the_best_factor(problem):
    x, y, _, _, z = problem
    logits = 3 * x @ z.T
    scale, loss = calibrate(logits, y)
    for s in range(5):
        losses = [F.cross_entropy(f * logits[s], y, label_smoothing=1 / 19).item() for f in np.geomspace(0.05, 50, 2000)]
        best = np.geomspace(0.05, 50, 2000)[np.argmin(losses)]
        assert scale[s].item() == pytest.approx(best, rel=0.02) and loss[s].item() == pytest.approx(min(losses), rel=0.02)
    perfect = 50.0 * F.one_hot(y, 6).float()[None]
    assert calibrate(perfect, y)[0] < 1  # right answers are no proof of an infinite factor


def test_text_init_does_not_know_the_scale_of_features_or_captions(problem):
    """A pull on logits of a fixed scale would be 48 times harder at CLIP's scale of 100 than at the toy's of 14.5."""
    x, y, x_test, _, z = problem
    assert torch.allclose(text_init(x, y, z)(x_test), text_init(x, y, 9 * z)(x_test), atol=0.02)


def test_parts_hold_out_each_image_once_and_never_the_only_one():
    y = torch.tensor([2, 0, 0, 1, 0, 2, 0, 0])
    assert parts(y).tolist() == [0, 0, 1, -1, 2, 1, 3, 0]
    assert parts(torch.tensor([0, 1, 0, 1, 1])).tolist() == [0, 0, 1, 1, 0]


# what text-init has to reach: neither captions nor labels would have been better alone


def surrogate(noise, classes=20, width=128, seed=0):
    """x, y, x_test, y_test, z: images of one large common part and some 15 directions that matter little; captions in CLIP's
    geometry, which is a cosine of .8 between captions, off by `noise`; the logit scale is 100."""
    rng = torch.Generator().manual_seed(seed)
    centres, common = torch.randn(classes, width, generator=rng), 2 * torch.randn(width, generator=rng)
    turns = torch.randn(15, width, generator=rng)

    def images(n):
        y = torch.arange(classes).repeat_interleave(n)
        noise = 0.5 * torch.randn(len(y), 15, generator=rng) @ turns + 1.2 * torch.randn(len(y), width, generator=rng)
        return F.normalize(common + centres[y] + noise, dim=1), y

    direction = F.normalize(centres, dim=1) + noise * F.normalize(torch.randn(classes, width, generator=rng), dim=1)
    z = F.normalize(F.normalize(common, dim=0) + 0.5 * F.normalize(direction, dim=1), dim=1)
    return *images(8), *images(25), z


def check_the_bar(x, y, x_test, y_test, z, shots):
    """At least zero-shot - .005, and from two labels on the better of zero-shot and linear, - .015."""
    classes, zero = len(z), ((x_test @ z.T).argmax(1) == y_test).double().mean().item()
    reached = {}
    for k in shots:
        rows = np.stack([draw(y.numpy(), k, seed) for seed in range(5)])
        x_k, y_k = x[torch.from_numpy(rows)], y[rows[0]]
        mean = lambda fit: right_or_wrong(fit, x_k, y_k, x_test, y_test, classes).double().mean().item()  # noqa: B023, E731
        reached[k], other = mean(lambda x, y: text_init(x, y, z)), mean(lambda x, y: linear(x, y, classes))
        assert reached[k] >= zero - 0.005, (k, reached, zero)
        assert k == 1 or reached[k] >= max(zero, other) - 0.015, (k, reached, zero, other)
    return zero, reached


@pytest.mark.parametrize("noise, low, high", [(0.5, 0.9, 1.0), (3.0, 0.3, 0.75), (12.0, 0.05, 0.2)])
def test_good_and_bad_captions_are_never_much_worse_than_the_better_of_them_and_the_labels(noise, low, high):
    zero, _ = check_the_bar(*surrogate(noise), shots=(1, 2, 8))
    assert low < zero < high


@pytest.fixture(scope="module")
def foods(real):
    from torchvision.models import ResNet50_Weights

    saved, captions = np.load(real / "clip/food10.npz"), np.load(real / "clip/imagenet_captions.npy")
    names = ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    x, y, x_test, y_test = (torch.from_numpy(saved[key]) for key in ("x_train", "y_train", "x_test", "y_test"))

    def foods(*words):
        """Images of the foods that have a word, and the words' captions."""
        kept = [i for i, word in enumerate(words) if word]
        z = torch.from_numpy(captions[[names.index(words[i]) for i in kept]]).float()
        new = torch.full((len(words),), -1).index_copy(0, torch.tensor(kept), torch.arange(len(kept)))
        train, test = new[y] >= 0, new[y_test] >= 0
        return F.normalize(x[train].float(), dim=1), new[y[train]], F.normalize(x_test[test].float(), dim=1), new[y_test[test]], z

    return foods


FOODS = {  # ImageNet's words for ten of Food-101: good ones, five poor of ten, and all poor
    "good": ("potpie", None, "guacamole", "cheeseburger", "ice cream", None, None, "pizza", None, None),
    "half": ("potpie", "tray", "guacamole", "cheeseburger", "ice cream", "frying pan", "wok", "pizza", "shoji", "sombrero"),
    "poor": ("plate", "tray", "soup bowl", "bakery", "ice lolly", "frying pan", "wok", "dough", "shoji", "sombrero"),
}


@pytest.mark.parametrize("words, one, four", [("good", 0.97, 0.98), ("half", 0.885, 0.955), ("poor", 0.8, 0.95)])
def test_the_bar_with_real_clip_features(words, one, four, foods):
    _, reached = check_the_bar(*foods(*FOODS[words]), shots=(1, 2, 4, 16))
    assert reached[1] >= one and reached[4] >= four


def test_tip_is_its_formula_and_with_a_large_beta_the_nearest_neighbour(problem):
    x, y, x_test, _, z = problem
    logits = tip(x, y, z, 20.0)(x_test)
    for s, i, c in ((0, 0, 0), (3, 117, 2), (4, 299, 5)):
        votes = sum(np.exp(-5.5 * (1 - float(x_test[i] @ x[s, j]))) for j in range(18) if y[j] == c)
        assert logits[s, i, c].item() == pytest.approx(20 * float(x_test[i] @ z[c]) + votes, abs=1e-3)
    x, x_test, z = x.double(), x_test.double(), z.double()
    nearest = y[(x_test @ x.transpose(1, 2)).argmax(2)]
    assert torch.equal(tip(x, y, z, 20.0, alpha=1e200, beta=300.0)(x_test).argmax(2), nearest)
    assert torch.allclose(tip(x, y, z, 20.0, alpha=0.0)(x_test), 20 * x_test @ z.T)


def test_by_default_a_fit_ends_where_its_gradient_is_small(problem, monkeypatch):
    """By autograd, and not much later; and it names images as the exact one does."""
    x, y, x_test, _, _ = problem
    x, x_test = (few_shot.standardise(t, x.mean(1, keepdim=True)) for t in (x, x_test))
    monkeypatch.setattr(few_shot, "GRADIENT", GRADIENT)
    w = few_shot.logistic(x, y, x.new_zeros(5, 41, 6), 1e-3).requires_grad_()
    loss = sum(F.cross_entropy(part @ v, y) for part, v in zip(x, w)) + 1e-3 / 2 * w.square().sum()
    loss.backward()
    # in the span of the images, whose basis is orthonormal, no gradient is longer than in the whole by the root of its 18 dimensions
    assert 1e-5 < w.grad.abs().max() < 18**0.5 * GRADIENT == 18**0.5 * 1e-4
    monkeypatch.setattr(few_shot, "GRADIENT", 1e-7)
    exact = few_shot.logistic(x, y, x.new_zeros(5, 41, 6), 1e-3)
    assert ((x_test @ w).argmax(2) == (x_test @ exact).argmax(2)).double().mean() > 0.99


def test_class_mean(problem):
    x, y, x_test, _, _ = problem
    for part, logits in zip(x, class_mean(x, y, 6)(x_test)):
        means = F.normalize(torch.stack([part[y == c].mean(0) for c in range(6)]), dim=1)
        assert torch.allclose(logits, x_test @ means.T, atol=1e-5)


# ---- the script -----------------------------------------------------------------------------------------------------


def shoot(call, *args):
    code, out, err = call(few_shot.main, "--out", "r.json", *args)
    assert code == 0, err
    return json.loads(open("r.json").read()), out


def test_record_and_table(world, call):
    record, out = shoot(call, "--data", "tiny", "--model", "toy-ViT", "--shots", "4", "1", "8", "16", "1", "--seeds", "3")
    m = record["metrics"]
    for method in ("linear", "text-init", "tip", "class-mean"):
        assert list(m[method]) == ["1", "4", "8", "16"]
        for row in m[method].values():
            assert row["mean"] == pytest.approx(np.mean(row["values"])) and row["std"] == pytest.approx(np.std(row["values"], ddof=1))
            assert len(row["values"]) == 3
        assert m[method]["8"] == m[method]["16"] and m[method]["8"]["std"] == 0  # all images, for every seed
        assert f"{m[method]['1']['mean']:.3f}±{m[method]['1']['std']:.3f}" in out
    assert len(set(m["linear"]["1"]["values"] + m["linear"]["4"]["values"])) > 2
    assert m["draws"]["1"] > 1 and m["draws"]["8"] == 1 and out.count("all") and "16" not in out.split("labels a class")[1].split("\n")[0]
    assert m["labels"] == {"1": 4, "4": 16, "8": 32, "16": 32} and m["short_classes"] == {"1": 0, "4": 0, "8": 0, "16": 4}
    right = np.load("r.npz")["right"]
    assert right.shape == (4 * 4, 3, 32) and right.dtype == np.uint8 and m["methods"] == ["class-mean", "linear", "tip", "text-init"]
    assert [(row["labels"], row["method"]) for row in record["table"]] == [
        (k, f"few-shot, {n}") for k in (1, 4, 8, 16) for n in m["methods"]
    ]
    for row, values in zip(record["table"], right):
        found = m[row["method"].removeprefix("few-shot, ")][str(row["labels"])]
        assert values.mean(1).tolist() == pytest.approx(found["values"]) and row["accuracy"] == pytest.approx(found["mean"])
        assert row["labels_used"] == m["labels"][str(row["labels"])] and row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]
    assert "advised for few labels: text-init" in out and "linear_probe.py" in out
    assert out.count("note:") == 1 and "4 of 4 at k = 16" in out and record["labels_used"] == 32 and "permutation" in m["draw"]
    assert call(zero_shot.main, "--data", "tiny", "--model", "toy-ViT", "--out", "z.json")[0] == 0
    assert m["zero_shot"] == json.loads((world / "z.json").read_text())["metrics"]["top1"]
    again, _ = shoot(call, "--data", "tiny", "--model", "toy-ViT", "--shots", "1", "--seeds", "1", "--seed", "2")
    assert again["metrics"]["linear"]["1"]["values"] == m["linear"]["1"]["values"][2:] and again["metrics"]["linear"]["1"]["std"] is None
    assert again["metrics"]["labels"] == {"1": 4, "8": 32} and again["labels_used"] == 32  # a last k takes every label
    assert again["metrics"]["linear"]["8"]["mean"] == m["linear"]["8"]["mean"]


def test_draws_one_after_the_other_give_what_all_at_once_give(world, call, monkeypatch):
    args = ("--data", "tiny", "--model", "toy-ViT", "--shots", "2", "--seeds", "3")
    at_once, _ = shoot(call, *args)
    monkeypatch.setattr(few_shot, "MEMORY", 1)
    one_by_one, _ = shoot(call, *args)
    for method in at_once["metrics"]["methods"]:
        for k in ("2", "8"):
            assert one_by_one["metrics"][method][k]["values"] == pytest.approx(at_once["metrics"][method][k]["values"], abs=0.04)


def test_an_imagenet_model_runs_what_needs_no_text(world, call):
    record, out = shoot(call, "--data", "tiny", "--model", "toy-imagenet", "--shots", "2")
    assert {"linear", "class-mean"} <= set(record["metrics"]) and not {"zero_shot", "tip", "text-init"} & set(record["metrics"])
    assert "zero-shot" not in out and "advised for few labels: linear" in out


def test_what_was_not_drawn_has_no_say(world, call):
    shutil.copytree(world / "data" / "tiny", world / "own")
    args = ("--data", "./own", "--model", "toy-RN", "--shots", "2", "--seeds", "1")
    before, _ = shoot(call, *args)
    images = load_images(load_data("./own"), "train", 64)
    drawn = {images.paths[i] for i in draw(images.labels.numpy(), 2, 0)}
    for path in set(images.paths) - drawn:
        Image.new("RGB", (32, 32)).save(world / "own" / path)
    after, _ = shoot(call, *args)
    methods = ("linear", "text-init", "tip", "class-mean")
    assert [before["metrics"][m]["2"] for m in methods] == [after["metrics"][m]["2"] for m in methods] and len(drawn) == 8
    assert before["metrics"]["zero_shot"] == after["metrics"]["zero_shot"]
    Image.new("RGB", (32, 32)).save(world / "own" / min(drawn))
    assert shoot(call, *args)[0]["metrics"]["class-mean"]["2"] != before["metrics"]["class-mean"]["2"]


def test_captions_chosen_with_labels_are_not_called_zero_shot(world, call):
    (world / "t.json").write_text('["{}", "a {}."]')
    args = ("--data", "tiny", "--model", "toy-RN")
    assert call(prompts.main, *args, "--templates", "t.json", "--out", "best.json")[0] == 0
    record, out = shoot(call, *args, "--shots", "1", "--prompts", "best.json")
    assert "zero_shot" not in record["metrics"] and "not zero-shot" in out and record["labels_used"] == 32
    assert "best.json: chosen with 32 labelled images of tiny" in out and "its labels are in tip and text-init too" in out
    code, _, err = call(few_shot.main, "--data", "tiny", "--model", "toy-imagenet", "--prompts", "a {}.")
    assert code == 2 and "--prompts" in err and err.count("\n") == 1
    assert record["metrics"]["chosen_prompts"] == json.loads((world / "best.json").read_text())["metrics"]["top1"]
