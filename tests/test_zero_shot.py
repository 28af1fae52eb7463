"""zero_shot.py and the metrics that every script reports: against independent implementations, and run as a user does."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, run
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

import common
import few_shot
import finetune
import linear_probe
import prompts
import toy
import zero_shot
from common import _load_images as load_images, evaluate, load_data, load_model, read_templates, seal, wilson


def test_wilson_stays_between_0_and_1():
    assert all(wilson(c / n, n)[0] >= 0 and wilson(c / n, n)[1] <= 1 for n in range(1, 60) for c in (0, n))


def test_ties_go_to_the_first_class():
    m = evaluate(torch.zeros(6, 8), torch.tensor([0, 0, 0, 1, 4, 5]), list("abcdefgh"))
    assert m["top1"] == 0.5 and m["top5"] == pytest.approx(5 / 6)


def test_metrics_are_scikit_learns():
    rng = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(300, 9, generator=rng), torch.randint(0, 8, (300,), generator=rng)  # class 8 has no images
    m = evaluate(logits, labels, list("abcdefghi"))
    assert m["top1"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert m["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(9)))
    present = logits[:, :8].argmax(1)
    only = evaluate(logits[:, :8], labels, list("abcdefgh"))
    assert only["mean_per_class"] == pytest.approx(balanced_accuracy_score(labels, present))
    assert m["mean_per_class"] == pytest.approx(np.mean([(logits.argmax(1)[labels == c] == c).float().mean() for c in range(8)]))
    assert m["chance"] == pytest.approx(1 / 9)
    matrix = confusion_matrix(labels, logits.argmax(1), labels=range(9))
    np.fill_diagonal(matrix, 0)
    counts = [c["count"] for c in m["confusions"]]
    assert counts == sorted(matrix.ravel(), reverse=True)[:10]
    for c in m["confusions"]:
        t, p = "abcdefghi".index(c["true"]), "abcdefghi".index(c["predicted"])
        assert matrix[t, p] == c["count"] and c["share"] == pytest.approx(c["count"] / (labels == t).sum().item())


@pytest.mark.parametrize("prompts", [["a photo of a {}, a type of fruit."], ["a photo of a {}.", "many {}.", "a dark {}."]])
def test_same_zero_shot_as_clip_benchmark(prompts, trained_toys, tmp_path, monkeypatch, call):
    """The same data, checkpoint and templates through clip_benchmark, scored with scikit-learn."""
    import clip
    from clip_benchmark.metrics.zeroshot_classification import run_classification, zero_shot_classifier

    monkeypatch.chdir(trained_toys)
    data = load_data("drawn")
    model = load_model("toy-ViT", "cpu", precision="float32")
    images = load_images(data, "test", model.size)
    args = ["--data", "drawn", "--model", "toy-ViT", "--precision", "float32", "--prompts", *prompts, "--out", tmp_path / "r.json"]
    assert call(zero_shot.main, *args)[0] == 0
    m = json.loads((tmp_path / "r.json").read_text())["metrics"]

    net, preprocess = clip.load("weights/toy-ViT.pt", device="cpu")
    pictures = [preprocess(Image.open(data.root / p)) for p in images.paths]
    loader = torch.utils.data.DataLoader(list(zip(pictures, images.labels.tolist())), batch_size=32)
    templates = [p.replace("{}", "{c}") for p in prompts]
    classifier = zero_shot_classifier(net, clip.tokenize, data.words, templates, "cpu", amp=False)
    logits, target = run_classification(net, classifier, loader, "cpu", amp=False)
    assert m["top1"] == pytest.approx((logits.argmax(1) == target).float().mean().item())
    assert m["top5"] == pytest.approx(top_k_accuracy_score(target, logits, k=5, labels=range(len(data.classes))))
    assert m["mean_per_class"] == pytest.approx(balanced_accuracy_score(target, logits.argmax(1)))
    assert m["top1"] > 2 * m["chance"]  # trained enough for the comparison to mean something


def test_zero_shot_is_scaled_cosine():
    x, z = torch.randn(5, 8), torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    assert torch.allclose(zero_shot.zero_shot(x, z, 100.0), 100 * torch.cosine_similarity(x[:, None], z[None], dim=2), atol=1e-4)


def test_templates(tmp_path):
    assert read_templates(None) == (["a photo of a {}."], 0)
    assert read_templates(None, "bird") == (["a photo of a {}, a type of {type}."], 0)
    assert read_templates(["a {}."], "bird") == (["a {}."], 0)
    (tmp_path / "t.txt").write_text("a {}.\n\nthe {}.\n")
    (tmp_path / "t.json").write_text('["a {}.", "the {}."]')
    record = {"script": "prompts", "data": {"name": "d"}, "metrics": {"ensemble": ["a {}.", "the {}."]}, "labels_used": 9}
    (tmp_path / "best.json").write_text(json.dumps(seal(record, tmp_path / "best.json")))
    for name, labels_used in (("t.txt", 0), ("t.json", 0), ("best.json", 9)):
        assert read_templates([str(tmp_path / name)]) == (["a {}.", "the {}."], labels_used)


# ---- the script -----------------------------------------------------------------------------------------------------


def test_script_prints_and_writes(world, call):
    done = run(
        "zero_shot.py",
        "--data",
        "tiny",
        "--model",
        "toy-RN",
        "--device",
        "cpu",
        "--out",
        "r/toy-RN.json",
        "--grid",
        "g/grid.png",
        cwd=world,
    )
    assert done.returncode == 0 and not done.stderr
    for word in ("top-1", "95 % interval", "mean per class", "chance", "32 test images", "4 classes", "a photo of a {}."):
        assert word in done.stdout
    record = json.loads((world / "r" / "toy-RN.json").read_text())
    assert set(record) >= {"script", "args", "data", "model", "labels_used", "metrics", "environment", "seconds"}
    assert set(record["metrics"]) == {
        "top1",
        "top1_ci95",
        "top1_ci95_other_classes",
        "top5",
        "mean_per_class",
        "mean_per_class_ci95",
        "chance",
        "largest_class",
        "confusions",
    }
    assert record["script"] == "zero_shot" and record["labels_used"] == 0 and record["args"]["seed"] == 0
    assert record["data"]["counts"] == {"test": 32} and len(record["data"]["classes"]) == 4
    assert set(record["environment"]) >= {"torch", "torchvision", "device", "threads", "code"}
    saved = np.load(world / "r" / "toy-RN.npz")
    assert (saved["true"] == saved["predicted"]).mean() == pytest.approx(record["metrics"]["top1"])
    assert len(saved["index"]) == len(saved["confidence"]) == 32
    assert Image.open(world / "g" / "grid.png").size[0] > 600
    code, out, _ = call(zero_shot.main, "--data", "tiny", "--model", "toy-RN", "--device", "cpu", "--out", "r/again.json")
    assert code == 0 and json.loads((world / "r" / "again.json").read_text())["metrics"] == record["metrics"]
    told = [line for line in done.stdout.splitlines() if not line.startswith("drew")]
    assert out.splitlines()[:5] == told[:5] and len(told) < len(done.stdout.splitlines())


def test_split_flag_and_skipped_images(world, call):
    (world / "data").unlink()
    shutil.copytree((world / "weights").resolve().parent / "data", world / "data")
    broken = next((world / "data/tiny/Training").rglob("3.jpg"))
    broken.write_bytes(broken.read_bytes()[:200])
    code, out, _ = call(zero_shot.main, "--data", "tiny", "--model", "toy-ViT", "--split", "train", "--out", "r.json")
    assert code == 0 and "31 train images" in out and "1 image skipped" in out and str(broken.relative_to(world)) in out
    assert json.loads((world / "r.json").read_text())["data"]["skipped"] == {"train": 1}
    code, _, err = call(zero_shot.main, "--data", "tiny", "--model", "toy-ViT", "--split", "val")
    assert code == 2 and "no val images" in err and err.count("\n") == 1


def test_any_pictures_any_labels(world, call):
    files = sorted((world / "data/tiny/Test").rglob("*.jpg"))[:2]
    code, out, _ = call(zero_shot.main, "--model", "toy-ViT", "--images", *files, "--labels", "a cat", "a red apple", "a dog")
    lines = out.splitlines()
    assert code == 0 and lines[0] == str(files[0]) and len(lines) == 9 and "not calibrated" in lines[-1]
    p = [float(line.split()[0]) for line in lines[1:4]]
    assert p == sorted(p, reverse=True) and sum(p) == pytest.approx(1, abs=0.01)
    assert {line.split(maxsplit=1)[1] for line in lines[1:4]} == {"a cat", "a red apple", "a dog"}
    (world / "x.jpg").write_text("no picture")
    for images in ("x.jpg", "none.jpg"):
        code, _, err = call(zero_shot.main, "--model", "toy-ViT", "--images", images, "--labels", "a cat")
        assert code == 2 and images in err and err.count("\n") == 1
    assert call(zero_shot.main, "--images", "x.jpg")[0] == 2


@pytest.mark.parametrize(
    "args, word",
    [
        (("--data", "tyo"), "tyo"),
        (("--out", "run.1"), ".json"),
        (("--grid", "grid.txt"), ".png"),
        (("--data", "tiny", "--device", "gpu"), "--device gpu: is none; say auto, cuda, mps or cpu"),
        (("--data", "tiny", "--model", "mobilenet_v2"), "--model mobilenet_v2: has no text side"),
        (("--seed", "-1"), "seed"),
        (("--batch", "0"), "batch"),
        (("--images", "x.jpg", "--labels", "a", "--out", "x.json"), "--out"),
        (("--data", "tiny", "--prompts", "data/tiny/Test/TOY0/8.jpg"), "8.jpg"),
        (("--data", "tiny", "--classnames", "none.json"), "none.json"),
        (("--data", "single"), "one class, a, of which nothing can be told apart"),
        (("--data", "tiny", "--model", "toy-VIT2"), "toy-ViT"),
        (("--data", "tiny", "--model", "toy-ViT", "--device", "cuda:9"), "cuda:9"),
    ],
)
def test_bad_input_is_one_line(args, word, world, call):
    args = [str(a).replace("TOY0", toy.TOY[0]) for a in args]
    for i in range(8):
        path = world / f"single/a/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    code, _, err = call(zero_shot.main, *args)
    assert code == 2 and word in err.splitlines()[-1] and "Traceback" not in err


def test_grid_takes_any_class_name(tmp_path):
    names = ["$a_$", "a" * 90, "三", "{x} %s \\"] * 4
    zero_shot.draw_grid(tmp_path / "g.png", np.zeros((16, 8, 8, 3), np.uint8), names, names[::-1], "$woods$")
    assert Image.open(tmp_path / "g.png").size[0] > 600


def test_confused_classes_without_pictures_leave_their_places_to_others(world):
    images = load_data("tiny").images(64)["test"]
    classes = [*toy.TOY[:4], "no picture of it"]
    predicted = np.array([4, 1, 2, 3] * 8)[: len(images)]
    wrong = {(t, p) for t, p in zip(images.labels.tolist(), predicted.tolist()) if t != p}
    confusions = [{"true": classes[t], "predicted": classes[p]} for t, p in sorted(wrong, key=lambda pair: -pair[1])]
    assert [c["predicted"] for c in confusions[:4]] == [classes[4]] * 4 and len(confusions) > 8
    pairs = common._example_pictures(images, predicted, confusions, classes)["pairs"]
    assert [(images.labels[a].item(), predicted[a], images.labels[b].item()) for a, b in pairs] == [
        (classes.index(c["true"]), classes.index(c["predicted"]), classes.index(c["predicted"])) for c in confusions[4:8]
    ]


def grid(file, names, title="woods"):
    zero_shot.draw_grid(file, np.zeros((len(names), 8, 8, 3), np.uint8), names, names, title)
    return np.asarray(Image.open(file).convert("L"))


@pytest.mark.parametrize("name", ["a_" * 20, "MOURNING DOVE", "the great northern diver of farther seas"])
def test_captions_of_the_grid_are_whole_and_pictures_apart(name, tmp_path):
    """Long names: nothing reaches an edge, and between two columns, under the title, all is white."""
    drawn = grid(tmp_path / "g.png", [name] * 16, "woods and meadows " * 10)
    edges = [drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]]
    gaps = [drawn[60:, x - 3 : x + 3] for x in (225, 450, 675)]
    assert all((strip == 255).all() for strip in (*edges, *gaps))


def test_the_grid_is_as_high_as_what_it_shows(tmp_path):
    heights = [len(grid(tmp_path / "g.png", names)) for names in (["a"], ["a"] * 4, ["a" * 40] * 4, ["a"] * 5)]
    assert heights[0] == heights[1] < heights[2] < heights[3]
    ink = (grid(tmp_path / "g.png", ["the great northern diver of farther seas"] * 3) < 255).any(1)
    assert ink[5:20].any() and not ink[24:35].any()  # white between the title and four lines of caption
    assert not np.array_equal(grid(tmp_path / "g.png", ["a"], "wood"), grid(tmp_path / "g.png", ["a"], "moor"))


def test_imagenet_model_says_that_it_has_no_text_side(world, call):
    code, _, err = call(zero_shot.main, "--data", "tiny", "--model", "toy-imagenet")
    assert code == 2 and "no text side" in err and err.count("\n") == 1


SCRIPTS = {  # the flags of each, and a word of what it prints
    zero_shot: ("data model weights act prompts type classnames seed device precision batch out split grid images labels", "top-1"),
    prompts: ("data model weights act templates type classnames seed device precision batch out", "test: default"),
    linear_probe: ("data model weights act prompts type classnames seed device precision batch out features save", "penalty"),
    few_shot: ("data model weights act prompts type classnames seed device precision batch out shots seeds", "text-init"),
    finetune: (
        "data model weights act prompts type classnames seed device precision out method head freeze epochs batch lr head-lr decay "
        "train-bn no-augment seeds save restart load predict",
        "WiSE-FT",
    ),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_nothing(script, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(script.main, "--help")
    assert code == 0 and not list(tmp_path.iterdir())
    assert [flag for flag in SCRIPTS[script][0].split() if f"--{flag}" not in out] == []
    assert "(toy)" in out and ("(256;" in out or "(32)" in out) and "None" not in out


def test_copied_alone_they_run(world, tmp_path):
    """A script and common.py in an empty folder are enough; all in one process, because imports take seconds."""
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(ROOT / "common.py", alone)
    weights = world / "weights" / "toy-ViT.pt"
    commands = []
    for script in SCRIPTS:
        name, more = f"{script.__name__}.py", ["--batch", "8"] if script is finetune else []  # tiny has 24 images to train on
        commands.append([name, "--data", str(world / "data" / "tiny"), "--model", "toy-ViT", "--weights", str(weights), *more])
        commands.append([name])
    train = ["upsample.py", "train", "--save", "g.safetensors", "--blocks", "1", "--width", "4", "--batch", "8", "--epochs", "1"]
    commands += [[*train, "--adversarial", "1", "--data", str(world / "data" / "tiny")], train]
    each = f"""
import os, runpy, shutil, sys
sys.path[0] = "."
for command in {commands!r}:
    sys.argv = command
    print("#", *command)
    print("#", *command, file=sys.stderr)
    shutil.copy({str(ROOT)!r} + "/" + command[0], ".")
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        print("exit", end.code)
    os.remove(command[0])
"""
    (tmp_path / "each.py").write_text(each)
    done = run("each.py", cwd=alone, script_folder=tmp_path)
    outs, errs = (re.split("^# .*\n", text, flags=re.MULTILINE)[1:] for text in (done.stdout, done.stderr))
    assert done.returncode == 0 and len(outs) == len(errs) == len(commands), done.stderr
    for command, out, err in zip(commands, outs, errs):
        if "--data" not in command:
            assert out == "exit 2\n" and "toy.py" in err and err.count("\n") == 1, command
        else:
            word = "validation PSNR" if command[0] == "upsample.py" else SCRIPTS[sys.modules[command[0][:-3]]][1]
            assert word in out and not err, command


@pytest.mark.parametrize("script", [prompts, linear_probe, few_shot, finetune])
@pytest.mark.parametrize("args, word", [(("--data", "tyo"), "tyo"), (("--data", "tiny", "--classnames", "none.json"), "none.json")])
def test_bad_input_is_one_line_everywhere(script, args, word, world, call):
    code, _, err = call(script.main, *args)
    assert code == 2 and word in err and err.count("\n") == 1


def test_no_script_imports_another():
    names = [path.stem for path in ROOT.glob("*.py") if path.stem != "common"]
    for path in ROOT.glob("*.py"):
        imported = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
        assert not set(imported) & set(names), path


def test_full_disk_is_one_line(world):
    """Where the result cannot be written, nothing half-written stays and one line says so."""
    limit = f"""
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # bytes a file
sys.argv, sys.path[0] = sys.argv[1:], {str(ROOT)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    (world / "limit.py").write_text(limit)
    done = run("limit.py", ROOT / "zero_shot.py", "--data", "tiny", "--model", "toy-ViT", "--out", "r.json", cwd=world, script_folder=world)
    assert done.returncode == 2 and "cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert not (world / "r.json").exists() and not [p for p in (world / "cache").rglob(".*") if p.is_file()]
