"""bench/check_clip.py on the tiny world, whose figures are measured first; what it downloads is for those with a network to see."""

import importlib.util
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import zero_shot

sys.path.insert(0, str(ROOT / "bench"))
import check_clip

TEMPLATES = ROOT / "bench/cifar.txt"


def checked(capfd, figures, monkeypatch):
    """(exit code, stdout, stderr), what the scripts say that it runs included."""
    monkeypatch.setattr(check_clip, "PUBLISHED", figures)
    monkeypatch.setattr(sys, "argv", ["check_clip.py"])
    with pytest.raises(SystemExit) as end:
        check_clip.main()
    return end.value.code, *capfd.readouterr()


def test_a_figure_that_is_missed_is_said_and_fails(world, capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", f"zero_shot.py --data tiny --model toy-RN --prompts {TEMPLATES} --out own.json".split(" "))
    zero_shot.main()
    top1 = json.loads(Path("own.json").read_text())["metrics"]["top1"]
    capfd.readouterr()
    code, out, _ = checked(capfd, {("toy-RN", "tiny"): top1 - 0.011}, monkeypatch)
    head, row, last = out.splitlines()
    assert code == 1 and head.split() == ["encoder", "data", "measured", "published", "difference"] and last == "0 of 1 within 0.01"
    assert row.split() == ["toy-RN", "tiny", f"{top1:.4f}", f"{top1 - 0.011:.4f}", "+0.0110", "FAIL"]


def cifar10(folder):
    """10 test pictures of noise, one a class, and as many for each part of train, as torchvision keeps CIFAR-10."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3 * 32 * 32), dtype=np.uint8)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(10))}))
    words = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": words}))


ANY_CIFAR = """
from torchvision.datasets import CIFAR10
CIFAR10.train_list, CIFAR10.test_list = ([[file, None] for file, _ in files] for files in (CIFAR10.train_list, CIFAR10.test_list))
CIFAR10.meta = CIFAR10.meta | {"md5": None}
"""  # the hashes of the true files are all that is left out


@pytest.mark.slow
def test_cifar_is_read_and_the_words_of_its_classes_are_those_of_clip(tiny, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(tiny / "weights")
    cifar10(tmp_path / "data/torchvision/CIFAR10")
    (tmp_path / "sitecustomize.py").write_text(ANY_CIFAR)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(check_clip, "TOLERANCE", 2)
    code, out, _ = checked(capfd, {("toy-ViT", "torchvision:CIFAR10"): -1.0}, monkeypatch)
    record = json.loads(Path("results/check_clip/toy-ViT-torchvision-CIFAR10.json").read_text())
    assert code == 0 and out.endswith("pass\n1 of 1 within 2\n") and f"{record['metrics']['top1']:8.4f}    -1.0000" in out
    assert record["data"]["counts"] == {"test": 10} and record["data"]["words"][:2] == ["airplane", "automobile"]


@pytest.mark.slow
def test_without_a_network_it_is_one_line_and_nothing_is_left(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody answers
    code, out, err = checked(capfd, {("toy-ViT", "torchvision:CIFAR10"): 0.5}, monkeypatch)
    assert code == 2 and not out and err.count("\n") == 1 and "torchvision:CIFAR10: " in err
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_the_templates_are_those_that_clip_benchmark_takes_for_cifar():
    folder = Path(importlib.util.find_spec("clip_benchmark").origin).parent
    theirs = json.loads((folder / "datasets/en_zeroshot_classification_templates.json").read_text())
    ours = [line.replace("{}", "{c}") for line in TEMPLATES.read_text().splitlines()]
    assert len(ours) == 18 and ours == theirs["cifar10"] == theirs["cifar100"]
