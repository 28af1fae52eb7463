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
from common import load_data, load_images
from few_shot import class_mean, draw, linear, text_init, tip

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


def solve(name, x, y, x_test, z):
    return linear(x, y, x_test, len(z)) if name == "linear" else text_init(x, y, x_test, z, 20.0)


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


def test_linear_is_scikit_learns(problem):
    x, y, x_test, y_test, _ = problem
    for part, logits in zip(x, linear(x, y, x_test, 6, l2=1e-3)):
        mean = part.mean(0)
        fit = LogisticRegression(C=1 / (1e-3 * len(y)), tol=1e-8, max_iter=10_000).fit(F.normalize(part - mean, dim=1).double(), y)
        theirs = fit.decision_function(F.normalize(x_test - mean, dim=1).double())
        ours = logits.numpy() - logits.numpy().mean(1, keepdims=True)
        assert np.allclose(ours, theirs - theirs.mean(1, keepdims=True), atol=0.05)
        assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.99
        assert (ours.argmax(1) == y_test.numpy()).mean() > 0.7


def test_text_init_with_an_infinite_pull_is_zero_shot(problem):
    x, y, x_test, _, z = problem
    zero = zero_shot.zero_shot(x_test, z, 20.0)
    assert torch.allclose(text_init(x, y, x_test, z, 20.0, pull=1e9), zero.expand(5, -1, -1), atol=1e-3)
    assert not torch.allclose(text_init(x, y, x_test, z, 20.0), zero.expand(5, -1, -1), atol=0.5)


def test_text_init_without_a_pull_fits_its_images_and_logits_are_scaled_cosines(problem):
    x, y, x_test, _, z = problem
    logits = text_init(x[:1], y, x[0], z, 20.0, pull=0.0)
    assert (logits[0].argmax(1) == y).all() and logits.abs().max() <= 20.001


def test_text_init_minimises_what_it_says(problem):
    x, y, x_test, _, z = problem
    w = z.double().clone().requires_grad_()
    optimiser = torch.optim.Adam([w], 0.01)
    for _ in range(1500):
        logits = 30.0 * x[0].double() @ (w / w.norm(dim=1, keepdim=True)).T
        loss = F.cross_entropy(logits, y) + 0.02 / 2 * torch.stack([900 * (a - b) @ (a - b) for a, b in zip(w, z.double())]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    theirs = 30.0 * x_test.double() @ F.normalize(w.detach(), dim=1).T
    assert torch.allclose(text_init(x[:1], y, x_test, z, 30.0, pull=0.02)[0].double(), theirs, atol=0.1)


def test_the_pull_fades_with_the_labels_of_a_class(problem, monkeypatch):
    x, y, x_test, _, z = problem
    pulled = text_init(x, y, x_test, z, 20.0)
    by_hand = text_init(x, y, x_test, z, 20.0, pull=few_shot.PULL / 3**few_shot.FADE)
    assert torch.equal(pulled, by_hand) and few_shot.FADE > 0


def test_tip_is_its_formula_and_with_a_large_beta_the_nearest_neighbour(problem):
    x, y, x_test, _, z = problem
    logits = tip(x, y, x_test, z, 20.0)
    for s, i, c in ((0, 0, 0), (3, 117, 2), (4, 299, 5)):
        votes = sum(np.exp(-5.5 * (1 - float(x_test[i] @ x[s, j]))) for j in range(18) if y[j] == c)
        assert logits[s, i, c].item() == pytest.approx(20 * float(x_test[i] @ z[c]) + votes, abs=1e-3)
    x, x_test, z = x.double(), x_test.double(), z.double()
    nearest = y[(x_test @ x.transpose(1, 2)).argmax(2)]
    assert torch.equal(tip(x, y, x_test, z, 20.0, alpha=1e200, beta=300.0).argmax(2), nearest)
    assert torch.allclose(tip(x, y, x_test, z, 20.0, alpha=0.0), 20 * x_test @ z.T)


def test_class_mean(problem):
    x, y, x_test, _, _ = problem
    for part, logits in zip(x, class_mean(x, y, x_test, 6)):
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
            assert len(row["values"]) == 3 and row["ci95_class"][0] <= row["mean"] <= row["ci95_class"][1]
        assert m[method]["8"] == m[method]["16"] and m[method]["8"]["std"] == 0  # all images, for every seed
        assert f"{m[method]['1']['mean']:.3f}±{m[method]['1']['std']:.3f}" in out
    assert len(set(m["linear"]["1"]["values"] + m["linear"]["4"]["values"])) > 2
    assert m["draws"]["1"] > 1 and m["draws"]["8"] == 1 and out.count("all") and "16" not in out.split("labels a class")[1].split("\n")[0]
    assert m["labels"] == {"1": 4, "4": 16, "8": 32, "16": 32} and m["short_classes"] == {"1": 0, "4": 0, "8": 0, "16": 4}
    assert out.count("note:") == 1 and "4 of 4 at k = 16" in out and record["labels_used"] == 32 and "permutation" in m["draw"]
    assert call(zero_shot.main, "--data", "tiny", "--model", "toy-ViT", "--out", "z.json")[0] == 0
    assert m["zero_shot"] == json.loads((world / "z.json").read_text())["metrics"]["top1"]
    again, _ = shoot(call, "--data", "tiny", "--model", "toy-ViT", "--shots", "1", "--seeds", "1", "--seed", "2")
    assert again["metrics"]["linear"]["1"]["values"] == m["linear"]["1"]["values"][2:] and again["metrics"]["linear"]["1"]["std"] is None
    assert again["labels_used"] == 4


def test_an_imagenet_model_runs_what_needs_no_text(world, call):
    record, out = shoot(call, "--data", "tiny", "--model", "toy-imagenet", "--shots", "2")
    assert {"linear", "class-mean"} <= set(record["metrics"]) and not {"zero_shot", "tip", "text-init"} & set(record["metrics"])
    assert "zero-shot" not in out


def test_what_was_not_drawn_has_no_say(world, call):
    shutil.copytree(world / "data" / "tiny", world / "own")
    args = ("--data", "./own", "--model", "toy-RN", "--shots", "2", "--seeds", "1")
    before, _ = shoot(call, *args)
    images = load_images(load_data("./own"), "train", 64)
    drawn = {images.paths[i] for i in draw(images.labels.numpy(), 2, 0)}
    for path in set(images.paths) - drawn:
        Image.new("RGB", (32, 32)).save(world / "own" / path)
    after, _ = shoot(call, *args)
    methods = ("linear", "text-init", "tip", "class-mean", "zero_shot")
    assert [before["metrics"][m] for m in methods] == [after["metrics"][m] for m in methods] and len(drawn) == 8
    Image.new("RGB", (32, 32)).save(world / "own" / min(drawn))
    assert shoot(call, *args)[0]["metrics"]["class-mean"] != before["metrics"]["class-mean"]


def test_captions_chosen_with_labels_are_not_called_zero_shot(world, call):
    (world / "t.json").write_text('["{}", "a {}."]')
    args = ("--data", "tiny", "--model", "toy-RN")
    assert call(prompts.main, *args, "--templates", "t.json", "--out", "best.json")[0] == 0
    record, out = shoot(call, *args, "--shots", "1", "--prompts", "best.json")
    assert "zero_shot" not in record["metrics"] and "not zero-shot" in out and record["labels_used"] == 32
    assert "best.json: chosen with 32 labelled images of tiny" in out and "its labels are in tip and text-init too" in out
    code, _, err = call(few_shot.main, "--data", "tiny", "--model", "toy-imagenet", "--prompts", "a {}.")
    assert code == 2 and "--prompts" in err and err.count("\n") == 1
    assert record["metrics"]["chosen_prompts"] == json.loads((world / "best.json").read_text())["metrics"]["top1"]["ensemble"]
