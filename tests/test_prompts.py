"""prompts.py: scores and selection against plain loops, and that test images have no say."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import top_k_accuracy_score

import prompts
import zero_shot
from common import _load_images as load_images, load_data, load_model


def test_pool_is_wide_and_has_no_copies():
    assert len(prompts.POOL) >= 60 and len(set(prompts.POOL)) == len(prompts.POOL)
    assert all(t.count("{}") == 1 and "{type}" not in t for t in prompts.POOL) and prompts.POOL[0] == "a photo of a {}."
    assert prompts.with_type("a photo of a {}.") == "a photo of a {}, a type of {type}."
    assert prompts.with_type("{}") == "{}, a type of {type}" and prompts.with_type("a {}!") == "a {}, a type of {type}!"


def world_of_templates(templates=12, n=400, classes=6, width=16, seed=0):
    """Random images, labels and templates that are each a noisy view of the class centres."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=rng)
    y = torch.randint(0, classes, (n,), generator=rng)
    x = F.normalize(centres[y] + 1.5 * torch.randn(n, width, generator=rng), dim=1)
    z = F.normalize(centres + 1.5 * torch.randn(templates, classes, width, generator=rng), dim=2)
    return x, y, z


@pytest.mark.parametrize("seed", range(4))
def test_greedy_selection_is_that_of_a_plain_loop(seed):
    x, y, z = world_of_templates(seed=seed)

    def right(chosen):  # numpy, one image at a time
        mean = z[chosen].numpy().mean(0)
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        return np.array([np.argmax(mean @ image) == label for image, label in zip(x.numpy(), y.numpy())])

    chosen, last = [], None
    while True:
        scores = {i: right([*chosen, i]).mean() for i in range(len(z)) if i not in chosen}
        best = max(scores, key=lambda i: (scores[i], -i))
        new = right([*chosen, best])
        if last is not None:
            d = new.astype(float) - last
            if d.mean() <= d.std(ddof=1) / np.sqrt(len(d)):
                break
        chosen, last = [*chosen, best], new
    steps = prompts.select(x, y, z)
    assert [s["index"] for s in steps if s["taken"]] == chosen and len(chosen) > 1
    assert steps[-1]["index"] == best and not steps[-1]["taken"]
    assert steps[-1]["gain"] == pytest.approx(d.mean()) and steps[-1]["se"] == pytest.approx(d.std(ddof=1) / np.sqrt(len(d)))
    assert [s["taken"] for s in steps] == [True] * len(chosen) + [False]
    assert steps[len(chosen) - 1]["top1"] == pytest.approx(last.mean())


def test_of_equals_the_first_is_taken_and_the_others_are_named():
    x, y, z = world_of_templates()
    best = prompts.select(x, y, z)[0]["index"]
    z = torch.cat([z[best : best + 1], z, z[best : best + 1]])
    step = prompts.select(x, y, z)[0]
    assert step["index"] == 0 and step["equals"] == [best + 1, len(z) - 1]


def test_nothing_is_added_that_changes_nothing():
    x, y, z = world_of_templates()
    steps = prompts.select(x, y, z[:1].expand(4, -1, -1))
    assert [s["taken"] for s in steps] == [True, False] and steps[1]["gain"] == 0
    assert steps[1]["index"] == 1 and steps[1]["equals"] == [2, 3]  # one that is in stays out of the next step


# ---- the script -----------------------------------------------------------------------------------------------------

TEMPLATES = ["a photo of a {}.", "{}", "a dark {}, a type of {type}.", "many {}.", "the {}."]


@pytest.fixture
def own(world):
    """The tiny world with a data folder that can be changed, called a fruit, and five templates."""
    shutil.copytree(world / "data" / "tiny", world / "fruits")
    (world / "t.json").write_text(json.dumps(TEMPLATES))
    return world


def choose(call, *args):
    code, out, err = call(prompts.main, "--data", "./fruits", "--model", "toy-RN", "--templates", "t.json", "--out", "best.json", *args)
    assert code == 0, err
    return json.loads(open("best.json").read()), out


def test_scores_are_those_of_zero_shot_and_scikit_learn(own, call):
    record, out = choose(call, "--precision", "float32")
    m = record["metrics"]
    assert set(m) >= {"templates", "ensemble", "top1", "top1_ci95"} and set(m["candidates"]) == {"default", "best", "ensemble", "all"}
    assert m["candidates"]["ensemble"] == {key: m[key] for key in ("top1", "top1_ci95")}
    assert [row["template"] for row in m["templates"]] == TEMPLATES and record["labels_used"] == 32
    assert record["data"]["counts"] == {"train": 32, "test": 32} and record["history"][0]["taken"]
    data = load_data("./fruits")
    model = load_model("toy-RN", precision="float32")
    x, y = model.features(load_images(data, "train", model.size))
    z = model.classifier(data.words, TEMPLATES, "fruit", each=True)
    for row, one in zip(m["templates"], z):
        logits = (x / x.norm(dim=1, keepdim=True) @ one.T).numpy()
        right = logits.argmax(1) == y.numpy()
        assert row["top1"] == pytest.approx(right.mean())
        assert row["top5"] == pytest.approx(1.0)  # of four classes
        assert row["se"] == pytest.approx(right.std(ddof=1) / np.sqrt(len(right)))
        assert row["top1"] == pytest.approx(top_k_accuracy_score(y, logits, k=1, labels=range(4)))
    for template, row in zip(TEMPLATES[:2], m["templates"]):
        args = ("--data", "./fruits", "--model", "toy-RN", "--precision", "float32", "--split", "train", "--prompts")
        assert call(zero_shot.main, *args, template, template, "--out", "z.json")[0] == 0
        assert json.loads((own / "z.json").read_text())["metrics"]["top1"] == pytest.approx(row["top1"])
    (line,) = [line for line in out.splitlines() if line.startswith("test: default")]
    assert "all 5" in line


def test_zero_shot_reads_what_was_chosen_and_does_not_call_it_zero_shot(own, call):
    record, _ = choose(call)
    code, out, _ = call(zero_shot.main, "--data", "./fruits", "--model", "toy-RN", "--prompts", "best.json", "--out", "z.json")
    result = json.loads((own / "z.json").read_text())
    assert code == 0 and "best.json: chosen with 32 labelled images of fruits: not zero-shot" in out
    assert result["labels_used"] == 32 and result["args"]["prompts"] == record["metrics"]["ensemble"]
    assert result["metrics"]["top1"] == record["metrics"]["top1"]
    (own / "broken.json").write_text('{"script": "prompts"}')
    code, _, err = call(zero_shot.main, "--data", "./fruits", "--model", "toy-RN", "--prompts", "broken.json")
    assert code == 2 and "broken.json" in err and err.count("\n") == 1


def test_test_images_have_no_say_and_training_images_have(own, call):
    before, _ = choose(call)
    test = own / "fruits" / "Test"
    a, b, *_ = sorted(p.name for p in test.iterdir())
    (test / a).rename(test / "swap")
    (test / b).rename(test / a)
    (test / "swap").rename(test / b)
    after, _ = choose(call)
    chosen = ("templates", "ensemble")
    assert [after["metrics"][k] for k in chosen] == [before["metrics"][k] for k in chosen]
    assert after["metrics"]["candidates"] != before["metrics"]["candidates"]
    train = own / "fruits" / "Training"
    (train / a).rename(train / "swap")
    (train / b).rename(train / a)
    (train / "swap").rename(train / b)
    assert choose(call)[0]["metrics"]["templates"] != before["metrics"]["templates"]


def test_validation_images_choose_where_there_are_some(own, call):
    shutil.copytree(own / "fruits" / "Test", own / "fruits" / "val")
    for c in (own / "fruits" / "val").iterdir():
        next(c.iterdir()).unlink()
    record, out = choose(call)
    assert record["data"]["counts"] == {"val": 28, "test": 32} and record["labels_used"] == 28 and "28 val images" in out


def test_the_pool_comes_with_and_without_type(world, call):
    code, out, _ = call(prompts.main, "--data", "tiny", "--model", "toy-RN", "--type", "fruit", "--out", "r.json")
    pool = [row["template"] for row in json.loads((world / "r.json").read_text())["metrics"]["templates"]]
    assert code == 0 and len(pool) == 2 * len(prompts.POOL) and sum("{type}" in t for t in pool) == len(prompts.POOL)
    code, out, _ = call(prompts.main, "--data", "tiny", "--model", "toy-RN")
    assert code == 0 and f"{len(prompts.POOL)} templates on 32 train images" in out


@pytest.mark.parametrize("n", range(20, 60))
def test_one_image_more_is_no_reason_for_another_template(n):
    """Its gain and its standard error are both 1/n, whatever the rounding says."""
    e = torch.eye(3)
    x = torch.stack([e[0]] * (n - 2) + [torch.tensor([0.6, 0.8, 0.0]), e[2]])
    y = torch.tensor([0] * (n - 1) + [2])
    first = torch.stack([e[0], -e[1], -e[1]])  # wrong on the last image
    second = torch.stack([e[0], e[1], e[2]])  # wrong on the one before; together they name all
    steps = prompts.select(x, y, torch.stack([first, second]))
    assert [s["taken"] for s in steps] == [True, False]
    assert steps[1]["gain"] == pytest.approx(1 / n) and steps[1]["se"] == pytest.approx(1 / n)
