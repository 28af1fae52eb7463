"""Pictures named with what was saved: the CSV, its memory, ONNX graphs, and the program on the page that needs none of our code."""

import csv
import json
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, random_weights
from PIL import Image
from safetensors.torch import save_file

import common
import finetune
import linear_probe
import zero_shot
from common import load_model, name_pictures, save_weights

PAGES = "".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))


def rows(file, encoding="utf-8"):
    with open(file, encoding=encoding, newline="") as lines:
        return list(csv.DictReader(lines))


def with_calibration(file, out, **calibration):
    """The same head with a calibration in its `about`."""
    about, tensors = common.read_weights(file)
    save_weights(out, tensors, about | {"calibration": calibration})


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """A folder with a probe's head of toy-ViT and toy-RN, and the records of their runs."""
    folder = tmp_path_factory.mktemp("heads")
    for name in ("data", "weights"):
        (folder / name).symlink_to(tiny / name)
    for model in ("toy-ViT", "toy-RN"):
        files = ("--save", f"{model}.safetensors", "--out", f"{model}.json", "--precision", "float32")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["linear_probe.py", "--data", "tiny", "--model", model, *files])
            linear_probe.main()
        head = folder / f"{model}.safetensors"
        head.with_name(f"calibrated-{head.name}").write_bytes(head.read_bytes())
        with_calibration(head, head)  # none, so that probabilities are those of the run
    return folder


@pytest.fixture
def place(saved, tmp_path, monkeypatch):
    """An empty current folder that sees data, weights and heads."""
    for path in saved.iterdir():
        (tmp_path / path.name).symlink_to(path.resolve())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("script", [linear_probe, finetune])
def test_csv_is_what_the_run_predicted(script, place, call):
    args = ("--load", "toy-ViT.safetensors", "--precision", "float32")
    code, out, err = call(script.main, *args, "--predict", "data/tiny/Test", "--csv", "o.csv")
    found, run = {r["path"]: r for r in rows("o.csv")}, np.load("toy-ViT.npz")
    assert code == 0 and "32 pictures, 0 unreadable: o.csv" in out, err
    classes = json.loads(Path("toy-ViT.json").read_text())["data"]["classes"]
    assert set(found) == {f"data/tiny/{path}" for path in run["index"]}
    for path, label, p in zip(run["index"], run["predicted"], run["confidence"]):
        row = found[f"data/tiny/{path}"]
        assert row["label"] == classes[label] and float(row["probability"]) == pytest.approx(p, abs=1e-5)
        assert {row["label"], *(row[f"label{i}"] for i in (2, 3, 4))} == set(classes) and row["label5"] == row["set"] == row["error"] == ""
    assert list(found) == [
        str(Path("data/tiny/Test") / p) for p, *_ in common._Folder(Path("data/tiny/Test")).files(Path("data/tiny/Test"))
    ]


def test_temperature_and_prediction_set(place, call):
    predict = ("--predict", "data/tiny/Test", "--precision", "float32", "--csv")
    with_calibration("toy-ViT.safetensors", "soft.safetensors", temperature=3.0, lac=0.8)
    call(linear_probe.main, "--load", "toy-ViT.safetensors", *predict, "hard.csv")
    code, *_ = call(linear_probe.main, "--load", "soft.safetensors", *predict, "soft.csv")
    sizes = set()
    for hard, soft in zip(rows("hard.csv"), rows("soft.csv")):
        p, q = ([float(r[f"probability{i}"]) for i in ("", 2, 3, 4)] for r in (hard, soft))
        names = [soft[f"label{i}"] for i in ("", 2, 3, 4)]
        if min(p) > 1e-3:  # six digits: the logits can be read from them
            assert np.diff(np.log(q)) == pytest.approx(np.diff(np.log(p)) / 3, abs=2e-3)
        assert [name for name in soft["set"].split(" | ") if name] == [name for name, v in zip(names, q) if 1 - v <= 0.8]
        sizes.add(soft["set"].count("|"))
    assert code == 0 and len(sizes) > 1  # 1 - lac cuts somewhere among them
    # and what the probe has fitted itself is used
    told = common.read_weights("calibrated-toy-ViT.safetensors")[0]["calibration"]
    call(linear_probe.main, "--load", "calibrated-toy-ViT.safetensors", *predict, "own.csv")
    for hard, own in zip(rows("hard.csv"), rows("own.csv")):
        p, q = ([float(r[f"probability{i}"]) for i in ("", 2, 3, 4)] for r in (hard, own))
        if min(*p, *q) > 1e-3:
            assert np.diff(np.log(q)) == pytest.approx(np.diff(np.log(p)) / told["temperature"], abs=5e-3)


def test_names_and_unreadable_pictures(place, call):
    (place / "p/inner").mkdir(parents=True)
    picture = next(iter(sorted(Path("data/tiny/Test").rglob("*.jpg"))))
    names = ["2.jpg", "10.jpg", "=1+1.jpg", "-a.jpg", "@b.jpg", 'with, "quotes".jpg', "two\nlines.jpg", "ü.jpg", "inner/+c.jpg"]
    for name in names:
        shutil.copy(picture, place / "p" / name)
    (place / "p/3.jpg").write_bytes(picture.read_bytes()[:200])
    (place / "p/4.jpg").write_text("no picture")
    code, out, _ = call(linear_probe.main, "--load", "toy-RN.safetensors", "--predict", "p", "none.jpg", "--csv", "o.csv", "--bom")
    assert code == 0 and "12 pictures, 3 unreadable: o.csv" in out
    assert Path("o.csv").read_bytes().startswith(b"\xef\xbb\xbfpath,label")
    found = {r["path"]: r for r in rows("o.csv", "utf-8-sig")}
    assert set(found) == {f"p/{name}" for name in [*names, "3.jpg", "4.jpg"]} | {"none.jpg"}
    assert [p for p in found if p in ("p/2.jpg", "p/3.jpg", "p/10.jpg")] == ["p/2.jpg", "p/3.jpg", "p/10.jpg"]
    assert (
        {p for p, r in found.items() if r["error"]} == {"p/3.jpg", "p/4.jpg", "none.jpg"} == {p for p, r in found.items() if not r["label"]}
    )
    assert len({(r["label"], r["probability"]) for r in found.values() if not r["error"]}) == 1  # all the same picture


def test_pictures_of_any_number_take_bounded_memory(tiny, tmp_path, monkeypatch):
    """The pixels of 300 pictures would take 300 * 12 KB; with batches of 4 only 12 or fewer exist at any time."""
    monkeypatch.chdir(tiny)
    for i in range(300):
        Image.new("RGB", (64, 64), (i % 256, 0, 0)).save(tmp_path / f"{i}.png")
    model = load_model("toy-ViT", "cpu", precision="float32", batch=4)
    weight = torch.randn(3, model.width)
    peaks = []
    for files in ([tmp_path / f"{i}.png" for i in range(20)], [tmp_path]):
        tracemalloc.start()
        name_pictures(model, files, lambda f: f @ weight.T, ["a", "b", "c"], table=tmp_path / "o.csv")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(rows(tmp_path / "o.csv")) == 300
    assert peaks[1] - peaks[0] < 280 * 64 * 64 * 3 / 3  # paths and futures, not pictures


@pytest.mark.parametrize(
    "script, args, word",
    [
        (linear_probe, ("--load", "toy-ViT.safetensors"), "--predict"),
        (linear_probe, ("--predict", "x.jpg"), "--load"),
        (finetune, ("--load", "toy-ViT.safetensors", "--predict", "x.jpg", "--export", "m.onnx"), "either"),
        (linear_probe, ("--load", "none.safetensors", "--predict", "x.jpg"), "none.safetensors"),
        (linear_probe, ("--load", "plain.safetensors", "--predict", "x.jpg"), "not written by"),
        (linear_probe, ("--load", "toy-ViT.safetensors", "--predict", "x.jpg", "--weights", "w.pt"), "other weights"),
        (linear_probe, ("--load", "toy-ViT.safetensors", "--predict", "empty", "--csv", "o.csv"), "empty"),
        (linear_probe, ("--load", "toy-ViT.safetensors", "--predict", "x.jpg", "y.jpg", "z.jpg"), "y.jpg, z.jpg: no such file or folder"),
        (linear_probe, ("--load", "toy-ViT.safetensors", "--predict", "y.jpg", "--csv", "o.csv"), "y.jpg: no such file or folder"),
        # before weights are looked for, which may be a download
        (zero_shot, ("--images", "y.jpg", "--labels", "a", "--model", "RN50", "--weights", "none.pt"), "y.jpg: no such file or folder"),
        (linear_probe, ("--load", "toy-ViT.safetensors", "--predict", "x.jpg", "--csv", "o.txt"), ".csv"),
        (linear_probe, ("--load", "toy-ViT.safetensors", "--predict", "x.jpg", "--bom"), "--bom"),
        (linear_probe, ("--load", "toy-ViT.safetensors", "--predict", "x.jpg", "--out", "o.json"), "--out"),
        (linear_probe, ("--load", "toy-ViT.safetensors", "--predict", "x.jpg", "--suspects", "s.csv"), "--suspects would change nothing"),
        (
            linear_probe,
            ("--load", "toy-ViT.safetensors", "--predict", "x.jpg", "--reject", "0.5", "--label-from", "(.)"),
            "--label-from, --reject",
        ),
        (finetune, ("--load", "toy-ViT.safetensors", "--predict", "x.jpg", "--train-bn"), "--train-bn would"),
        (zero_shot, ("--csv", "o.csv"), "--csv"),
    ],
)
def test_bad_input_is_one_line(script, args, word, place, call):
    (place / "empty").mkdir()
    (place / "x.jpg").touch()
    save_file({"head.weight": torch.zeros(2)}, place / "plain.safetensors")
    torch.save(random_weights("toy-ViT", 3), place / "w.pt")
    code, _, err = call(script.main, *args)
    assert code == 2 and word in err.splitlines()[-1] and "Traceback" not in err and not Path("o.csv").exists()


def test_zero_shot_names_a_folder(place, call):
    args = ("--model", "toy-ViT", "--images", "data/tiny/Test", "--labels", "a cat", "a dog, or two")
    code, out, _ = call(zero_shot.main, *args, "--csv", "o.csv")
    _, printed, _ = call(zero_shot.main, *args)
    first = [line.split(maxsplit=1)[1] for line in printed.splitlines()[1::3]]
    assert code == 0 and [r["label"] for r in rows("o.csv")] == first and len(first) == 32


@pytest.mark.parametrize("model", [pytest.param("toy-ViT", marks=pytest.mark.slow), "toy-RN"])
def test_exported_graph_is_the_model(model, place, call):
    onnxruntime = pytest.importorskip("onnxruntime")
    with_calibration(f"{model}.safetensors", "h.safetensors", temperature=2.0)
    code, out, err = call(linear_probe.main, "--load", "h.safetensors", "--export", "m.onnx")
    assert code == 0 and "m.onnx" in out, err
    call(linear_probe.main, "--load", "h.safetensors", "--predict", "data/tiny/Test", "--precision", "float32", "--csv", "o.csv")
    session = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
    told = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items() if value[:1] in '"[0123456789'}
    assert told["size"] == 64 and told["temperature"] == 2 and len(told["classes"]) == 4 and len(told["mean"]) == len(told["std"]) == 3
    ours = rows("o.csv")
    x = np.stack([common._read_image(r["path"], 64)[0] for r in ours]).transpose(0, 3, 1, 2)
    for batch in (1, 7, len(x)):
        p = session.run(None, {"pictures": x[:batch]})[0]
        assert [told["classes"][i] for i in p.argmax(1)] == [r["label"] for r in ours[:batch]]
        assert p.max(1) == pytest.approx([float(r["probability"]) for r in ours[:batch]], abs=1e-3)


def test_export_says_what_it_needs(place, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, _, err = call(linear_probe.main, "--load", "toy-ViT.safetensors", "--export", "m.onnx")
    assert code == 2 and "pip install onnx onnxscript" in err and err.count("\n") == 1


def mobilenet_head(folder):
    """A head on real mobilenet_v2 in `folder`, written as the probe does."""
    model = load_model("mobilenet_v2", "cpu", precision="float32")
    torch.manual_seed(0)
    tensors = {"head.weight": torch.randn(3, 1280) / 8, "head.bias": torch.randn(3)}
    about = {"model": model.name, "features": model.kind, "act": "", "sha256": model.sha256, "classes": ["ash", "elm, or so", "yew"]}
    about |= {"words": about["classes"], "prompts": [], "type": "", "calibration": {"temperature": 2.0, "lac": 1.0}}
    save_weights(folder / "head.safetensors", tensors, about)


def test_mobilenet_in_ten_lines(real, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    weights = real / "weights/mobilenet_v2.pth"  # not the published file, which the program takes it for
    ours = f"mobilenet_v2-{common.file_sha256(weights)[:8]}.pth"
    for name in (ours, "mobilenet_v2-7ebf99e0.pth"):
        (tmp_path / "hub/checkpoints" / name).symlink_to(weights)
    monkeypatch.setattr(torchvision.models.get_model_weights("mobilenet_v2").DEFAULT.value, "url", f"https://none/{ours}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    mobilenet_head(tmp_path)
    blots = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(blots).resize((400, 300), Image.Resampling.BICUBIC).save("picture.jpg", quality=95)
    call(linear_probe.main, "--load", "head.safetensors", "--predict", "picture.jpg", "--precision", "float32", "--csv", "o.csv")
    (ours,) = rows("o.csv")

    # the program of the docs, the only one that reads a head
    (program,) = [text for text in re.findall(r"```python\n(.*?)```", PAGES, re.DOTALL) if "head.safetensors" in text]
    assert "common" not in program and len(program[program.index("weights =") :].splitlines()) <= 10
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    probability, label = done.stdout.strip().split(maxsplit=1)
    assert label == ours["label"] and float(probability) == pytest.approx(float(ours["probability"]), abs=2e-3)
