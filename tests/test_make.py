"""The Makefile's plan, bench/stamp.py, by which it knows what is out of date, and bench/estimate.py, which says how long that takes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

import linear_probe
from common import pick_device

sys.path.insert(0, str(ROOT / "bench"))
import estimate
import speed
import stamp

RESULT = "results/linear_probe/tiny/toy-RN.json"
BIRDS = ["DATA=/some/birds", "CLIP=RN101", "IMAGENET=resnet101 vit_b_32"]


def plan(folder, *args, goal="study"):
    """The commands that make would run, one a line."""
    done = subprocess.run(["make", "-n", "-f", ROOT / "Makefile", goal, "PYTHON=python", *args], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("python ")]


def test_make_plans_each_run_once_and_only_what_is_missing(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "toy-imagenet.pt").touch()
    commands = plan(tmp_path)
    outs = [re.search("--out (\\S+)", c)[1] for c in commands if "--out" in c]
    # zero-shot 2 + 2, prompts 2, probes 3 + 2, few-shot 3, ml 3 + 2, cs 2 + 2, frozen 3, generator 1, its measures 1
    assert len(outs) == len(set(outs)) == 28 and all("--method" not in c or "--lr 5e-4 --epochs 8" in c for c in commands)
    assert len(commands) == 30  # and the stamp, and the enlarged data set
    files = [*outs, "results/toy.fingerprint", "weights/srgan-toy.safetensors", "data/toy-srgan/upsample.json"]
    for i, file in enumerate(["results/toy.fingerprint", "weights/srgan-toy.safetensors", "data/toy-srgan/upsample.json", *files]):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
        os.utime(tmp_path / file, (1000 + i, 1000 + i) if i < 3 else (2000, 2000) if file in outs else None)
    for i, file in enumerate(files[-3:]):
        os.utime(tmp_path / file, (1000 + i, 1000 + i))
    assert plan(tmp_path) == []
    (tmp_path / "results/few_shot/toy/toy-RN.json").unlink()
    assert plan(tmp_path) == ["python few_shot.py --data toy --model toy-RN --out results/few_shot/toy/toy-RN.json"]
    os.utime(tmp_path / "results/toy.fingerprint")  # the pictures have changed
    assert len(plan(tmp_path)) == 29


def test_what_others_wait_for_is_made_while_there_is_other_work(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "toy-imagenet.pt").touch()
    commands = plan(tmp_path)

    def places(*words):
        return [i for i, command in enumerate(commands) if all(f"{word} " in command for word in words)]

    [train], [apply] = places("upsample.py train"), places("upsample.py apply")
    assert max(places("zero_shot.py", "--data toy")) < train < min(places("prompts.py") + places("linear_probe.py"))
    assert max(places("few_shot.py") + places("--method ml", "--data toy")) < apply < min(places("--method cs") + places("--freeze"))


def test_a_signal_takes_no_mark_from_an_enlarged_copy(tmp_path):
    """Without it the copy would belong to nobody, and make would end there each time."""
    for name in ("results/tiny.fingerprint", "weights/srgan-tiny.safetensors"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nmkdir -p data/tiny-srgan\ntouch data/tiny-srgan/upsample.json\necho there\nexec sleep 60\n")
    script.chmod(0o755)
    command = ["make", "-f", ROOT / "Makefile", "DATA=tiny", "PYTHON=./python", "data/tiny-srgan/upsample.json"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True) as running:
        assert any(line == b"there\n" for line in running.stdout)
        os.killpg(running.pid, signal.SIGTERM)
    assert running.returncode and (tmp_path / "data/tiny-srgan/upsample.json").exists()


def test_make_stops_at_frozen_features_of_real_data(tmp_path):
    commands = plan(tmp_path, *BIRDS)
    assert len(commands) == 1 + 2 + 3 + 3 and not any(word in c for c in commands for word in ("finetune", "upsample", "srgan"))
    assert all("--data /some/birds" in c for c in commands)
    more = plan(tmp_path, *BIRDS, "FINETUNE=1")
    assert sum("finetune.py" in c for c in more) == 3 + 2 * (3 + 1 + 2) and sum("upsample.py" in c for c in more) == 3
    assert sum("--lr 1e-5" in c for c in more) == sum("--lr 1e-4" in c for c in more) == 6
    assert all("--blocks" not in c for c in more)


def test_what_a_reader_says_to_make_reaches_the_commands(tmp_path):
    assert all("--groups 'patient(\\d+)'" in c for c in plan(tmp_path, *BIRDS, "GROUPS=patient(\\d+)")[1:])
    assert "--margin .01 " in plan(tmp_path, *BIRDS, "MARGIN=.01", goal="all")[-1]
    assert plan(tmp_path, *BIRDS, "FINETUNE=") == plan(tmp_path, *BIRDS, "FINETUNE=0") == plan(tmp_path, *BIRDS)
    without = plan(tmp_path, "CLIP=", "DATA=sports", "IMAGENET=mobilenet_v2 squeezenet1_1")
    assert [c.split()[1] for c in without[1:]] == ["linear_probe.py"] * 2 + ["few_shot.py"] * 2
    assert not any("srgan" in c for c in plan(tmp_path, *BIRDS, "FINETUNE=1", "UPSAMPLED="))
    # the SRGAN alone: trained, applied and measured, then zero-shot and a probe on what it enlarged
    enlarged = plan(tmp_path, "DATA=birds", "CLIP=ViT-B/32 RN101", "UPSAMPLED=ViT-B/32")
    assert [c.split()[1] for c in enlarged if "srgan" in c] == ["upsample.py"] * 2 + ["zero_shot.py", "linear_probe.py", "upsample.py"]
    files = [word for c in enlarged for word in c.split() if word.startswith("results/")]
    assert all("/ViT-B-32." in c for c in enlarged if "--data birds-srgan" in c) and not any("ViT-B/32" in file for file in files)
    for command in plan(tmp_path, *BIRDS, "FINETUNE=1", "GROUPS=patient(\\d+)", goal="all"):
        words = shlex.split(command)  # as a shell would, that each can be pasted into
        assert not re.search("[$`]", command) and ("--groups" not in words or words[words.index("--groups") + 1] == "patient(\\d+)")


def test_the_rate_and_the_probe_are_taken_from_the_name_of_a_result(tmp_path):
    """Also where data set and encoder have hyphens, -ml- and -cs- in their names."""
    for folder, model, rate in (("birds", "ViT-B-32", "1e-5"), ("my-ml-data", "x-cs-y", "3e-04"), ("a-ml-1e-5", "RN101", "0.1")):
        probe, result = f"results/linear_probe/{folder}/{model}", f"results/finetune/{folder}/{model}"
        args = f"DATA={folder}", f"CLIP={model}", "IMAGENET=resnet101", "FINETUNE=1", f"RATES={rate} 1"
        _, first, second = plan(tmp_path, *args, goal=f"{result}-ml-{rate}.json")
        assert f"linear_probe.py --data {folder} --model {model} --save {probe}.safetensors --suspects {probe}-suspects.csv " in first
        assert f"--model {model} --method ml --head {probe}.safetensors --lr {rate} " in second
        cs = plan(tmp_path, *args, goal=f"{result}-cs-{rate}.json")
        assert len(cs) == 2 and f"--data {folder} --model {model} --method cs --lr {rate} " in cs[1]


MIXTURE = "ViT-B/32 open_clip:ViT-B-16-SigLIP2/webli timm:vit_small_patch14_dinov2.lvd142m resnet101 /some/mine.py:small"
CAPTIONED = ["ViT-B/32", "open_clip:ViT-B-16-SigLIP2/webli"]


def said(command, flag):
    """What a command says after a flag."""
    words = shlex.split(command)
    return words[words.index(flag) + 1]


def test_one_list_of_encoders_is_parted_by_what_has_captions_and_each_run_is_told_its_exact_name(tmp_path):
    frozen = plan(tmp_path, "DATA=birds", f"MODELS={MIXTURE}")
    for script in ("zero_shot", "prompts", "linear_probe", "few_shot"):
        commands = [c for c in frozen if c.split()[1] == f"{script}.py"]
        assert [said(c, "--model") for c in commands] == (CAPTIONED if script in ("zero_shot", "prompts") else MIXTURE.split()), script
    tuned = plan(tmp_path, "DATA=birds", f"MODELS={MIXTURE}", "FINETUNE=1", "RATES=1e-5", "UPSAMPLED=ViT-B/32")
    for command in [c for c in tuned if "--model" in c]:
        name = said(command, "--model")
        out = said(command, "--out").partition("/birds")[2].partition("/")[2]
        assert re.fullmatch(re.sub("[/@:]", "-", name) + r"(-ml-1e-5|-cs-1e-5|-frozen)?\.json", out), (
            command
        )  # spelled as common.spelled does
        assert not re.search("[/@:]", out)
    heads = [said(c, "--head") for c in tuned if "--method ml" in c]
    assert heads[1] == "results/linear_probe/birds/open_clip-ViT-B-16-SigLIP2-webli.safetensors" and len(heads) == 5 + 1
    assert [said(c, "--model") for c in tuned if "--method cs" in c] == [*CAPTIONED, "ViT-B/32"]


def test_results_are_out_of_date_when_the_file_of_their_encoder_has_changed_and_no_others(tmp_path):
    (tmp_path / "mine.py").touch()
    args = "DATA=birds", "MODELS=mine.py:a mobilenet_v2", "FINETUNE=1"
    outs = [said(c, "--out") for c in plan(tmp_path, *args) if "--out" in c]
    for i, file in enumerate(["results/birds.fingerprint", "mine.py", *outs]):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
        os.utime(tmp_path / file, (1000 + i, 1000 + i))
    assert plan(tmp_path, *args) == []
    os.utime(tmp_path / "mine.py", (5000, 5000))
    again = plan(tmp_path, *args)
    assert [said(c, "--out") for c in again] == [out for out in outs if "mine.py-a" in out] and len(again) == 2 + 2 + 1


def test_a_list_of_encoders_is_added_to_clip_and_imagenet_and_nothing_else_is_run(tmp_path):
    def models(*args):
        commands = plan(tmp_path, "DATA=birds", *args)
        return [[said(c, "--model") for c in commands if f"{script}.py" in c] for script in ("zero_shot", "linear_probe")]

    assert models("MODELS=mobilenet_v2") == [[], ["mobilenet_v2"]]
    assert models("MODELS=RN50x16 resnet50 toy-imagenet toy-RN", "IMAGENET=") == [
        ["RN50x16", "toy-RN"],
        ["RN50x16", "toy-RN", "resnet50", "toy-imagenet"],
    ]
    # a file that has captions, and one that is said twice
    both = models("MODELS=mine.py:a mine.py:b RN101", "CLIP=mine.py:a RN101", "IMAGENET=mine.py:b")
    assert both == [["mine.py:a", "RN101"], ["mine.py:a", "RN101", "mine.py:b"]]
    last = plan(tmp_path, "DATA=toy", "MODELS=toy-ViT mine.py:a", goal="all")
    assert any("bench/speed.py" in c and "--models toy-ViT mine.py:a --out" in c for c in last)


@pytest.mark.parametrize(
    "data, name",
    [("some/photos.csv", "photos"), ("a.b.zip", "a.b"), ("/x/my.tar", "my"), ("torchvision:CIFAR10", "CIFAR10"), ("x.csv/", "x.csv")],
)
def test_results_are_called_by_the_stem_of_the_data(data, name, tmp_path):
    commands = plan(tmp_path, f"DATA={data}", "MODELS=RN50 mobilenet_v2", "FINETUNE=1", goal="all")
    commands += plan(tmp_path, f"DATA={data}", "MODELS=RN50 mobilenet_v2", "FINETUNE=1")
    reading = [c for c in commands if "--data" in c and "plot.py" not in c and f"--data {name}-srgan" not in c]
    assert all(said(c, "--data") == data for c in reading) and f"plot.py --data {name} " in " ".join(commands)
    assert all(f"/{name}/" in said(c, "--out") for c in reading if "results/" in c and "bench" not in c and "srgan" not in c)
    assert any("srgan" in c for c in commands) == (data != "some/photos.csv")  # whose copies have other names


def test_fit_and_label_from_reach_all_that_reads_the_data_and_the_stamp(tmp_path):
    args = *BIRDS, "FIT=pad", "LABEL_FROM=^([a-z]+)_", "FINETUNE=1"
    commands = plan(tmp_path, *args, goal="all") + plan(tmp_path, *args)
    assert all(said(c, "--label-from") == "^([a-z]+)_" for c in commands if "plot.py" not in c)
    assert all(said(c, "--fit") == "pad" for c in commands if "--model" in c and "estimate" not in c)
    assert any("LABEL_FROM=^([a-z]+)_ FIT=pad'" in c for c in commands if "stamp.py" in c)
    assert said(plan(tmp_path, *BIRDS)[0], "--settings") == "TUNE= SRGAN= GROUPS="  # who says neither has nothing made anew


@pytest.mark.parametrize("data", ["my data", "/some/my data"])
def test_a_space_in_the_name_of_the_data_is_one_line(data, tmp_path):
    done = subprocess.run(["make", "-f", ROOT / "Makefile", "all", f"DATA={data}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1 and not os.listdir(tmp_path)
    assert "rename the folder" in done.stderr and "DATA=my-data" in done.stderr
    (tmp_path / "data/my data").mkdir(parents=True)
    if data == "my data":  # what it says can be pasted
        done = subprocess.run(["make", "-f", ROOT / "Makefile", f"DATA={data}"], cwd=tmp_path, capture_output=True, text=True)
        subprocess.run(re.search("mkdir.*?data/my-data", done.stderr)[0], shell=True, cwd=tmp_path, check=True)
        assert (tmp_path / "data/my-data").samefile(tmp_path / "data/my data")


def test_data_that_does_not_exist_is_one_line():
    done = subprocess.run(["make", "all", "DATA=tyo", f"PYTHON={sys.executable}"], cwd=ROOT, capture_output=True, text=True)
    said, stopped = done.stderr.splitlines()
    assert said == "stamp.py: --data tyo: no such folder: data/tyo or tyo" and stopped.startswith("make: ***")
    assert done.stdout.count("\n") == 1  # the command


def test_the_stamp_changes_with_what_results_depend_on_and_nothing_else(world, call):
    os.remove(world / "data")
    file, folder = world / "results" / "mine.fingerprint", world / "data/mine"
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)

    def again(*more):
        code, out, err = call(stamp.main, "--data", "data/mine", "--stamp", file, *more)
        assert code == 0 and not err
        changed = [line.removeprefix("mine: ").split(" changed")[0] for line in out.splitlines() if "made anew" in line]
        return changed, file.stat().st_mtime_ns

    first = again()
    assert first[0] == [] and again() == first
    Image.new("RGB", (9, 9)).save(folder / "a/1.png")
    assert again()[0] == ["pictures"]
    (folder / "classnames.json").write_text('{"a": "an apple"}')
    assert again()[0] == ["names of classes"]
    assert again("--settings", "TUNE=--epochs 3")[0] == ["settings"]
    last = again("--settings", "TUNE=--epochs 3")
    assert last[0] == [] and last == again("--settings", "TUNE=--epochs 3")
    assert call(stamp.main, "--data", "tyo", "--stamp", file)[0] == 2 and file.stat().st_mtime_ns == last[1]
    file.write_text("half a fi")
    assert again("--settings", "TUNE=--epochs 3")[0] == ["pictures, names of classes, settings, format of results, weights"]


def test_results_of_before_the_first_stamp_are_taken_as_made_if_they_are_of_these_pictures(world, call):
    code, *_ = call(linear_probe.main, "--data", "tiny", "--model", "toy-RN", "--out", RESULT)
    os.utime(RESULT, (2000, 2000))
    again = ("--data", "tiny", "--stamp", "results/tiny.fingerprint")
    code, out, _ = call(stamp.main, *again)
    assert code == 0 and "1 result of these pictures taken as made" in out
    assert os.stat("results/tiny.fingerprint").st_mtime <= 2000 and "taken as made" not in call(stamp.main, *again)[1]
    # but not where one is of others
    os.remove("results/tiny.fingerprint")
    text = Path(RESULT).read_text(encoding="utf-8")
    Path(RESULT).write_text(text.replace('"fingerprint": "', '"fingerprint": "f'), encoding="utf-8")
    assert "taken as made" not in call(stamp.main, *again)[1] and os.stat("results/tiny.fingerprint").st_mtime > 2000


def test_a_slip_of_the_pen_is_no_change(world, call, tmp_path):
    file = tmp_path / "tiny.fingerprint"
    for wrong, word in ((("--fit", "foo"), "invalid choice: 'foo'"), (("--groups", "("), "--groups (")):
        code, _, err = call(stamp.main, "--data", "tiny", "--stamp", file, "--settings", "FIT=foo", *wrong)
        assert code == 2 and word in err and not file.exists()


def test_speeds_of_other_encoders_stay(world, call):
    def speeds(*models):
        code, *_ = call(speed.main, "--data", "tiny", "--models", *models, "--out", "speed.json")
        assert code == 0
        return json.loads(Path("speed.json").read_text(encoding="utf-8"))["images_per_second"]

    first = speeds("toy-RN")
    assert speeds("nosuch") == first and [*speeds("toy-ViT")] == ["toy-RN", "toy-ViT"] and speeds("toy-ViT")["toy-RN"] == first["toy-RN"]


def test_the_estimate_counts_what_is_still_to_do(world, call):
    runs = [f"results/{run}/tiny/toy-RN.json" for run in ("linear_probe", "few_shot", "zero_shot")]
    code, out, _ = call(estimate.main, "--data", "tiny", "--runs", *runs)
    assert code == 0 and f"tiny: 64 images, 3 runs to do on {pick_device()[0]}" in out and "; with FINETUNE=1 " in out
    for run in runs:
        (world / run).parent.mkdir(parents=True)
        (world / run).touch()
        os.utime(world / run, (2000, 2000))
    code, out, _ = call(estimate.main, "--data", "tiny", "--runs", *runs)
    assert code == 0 and not out
    # what is older than the stamp is made anew
    (world / "stamp").touch()
    os.utime(world / "stamp", (1999, 1999))
    assert call(estimate.main, "--data", "tiny", "--stamp", "stamp", "--runs", *runs) == (0, "", "")
    os.utime(world / "stamp", (2001, 2001))
    assert "3 runs to do" in call(estimate.main, "--data", "tiny", "--stamp", "stamp", "--runs", *runs)[1]


def durations(line):
    """Seconds that a line of the estimate says: now, and with FINETUNE=1."""
    found = re.findall(r"([\d.]+) (s|min|h)\b", line)
    return [float(number) * {"s": 1, "min": 60, "h": 3600}[unit] for number, unit in found] + [0.0] * (2 - len(found))


def test_the_estimate_adds_up_the_encoders_and_what_finetune_would_add(world, call):
    frozen = [f"results/{run}/tiny/{m}.json" for m in ("toy-RN", "toy-imagenet", "nosuch") for run in ("linear_probe", "few_shot")]
    code, out, err = call(estimate.main, "--data", "tiny", "--runs", *frozen, "results/zero_shot/tiny/toy-RN.json")
    *rows, last = out.splitlines()[1:]
    assert code == 0 and [row.split()[0] for row in rows] == ["the", "toy-RN", "toy-imagenet", "SRGAN"]
    assert err.startswith("estimate.py: --model nosuch: no such model") and err.count("\n") == 1  # and the others are counted
    now, more = (sum(column) for column in zip(*map(durations, rows)))
    assert durations(last) == pytest.approx([now, now + more], abs=6)  # each is rounded
    assert durations(rows[1])[0] > durations(rows[2])[0] and durations(rows[3])[0] == 0
    # with fine-tuning among the runs nothing would be added
    tuned = [f"results/finetune/tiny/toy-RN-{kind}.json" for kind in ("ml-1e-5", "ml-1e-4", "cs-1e-5", "frozen")]
    _, out, err = call(estimate.main, "--data", "tiny", "--runs", *frozen[:4], *tuned, "results/upsample/tiny/eval.json")
    rows = out.splitlines()[1:-1]
    assert "FINETUNE" not in out and not err and [row.split()[0] for row in rows] == ["the", "toy-RN", "toy-imagenet", "SRGAN"]
    assert durations(rows[1])[0] > durations(rows[2])[0] and durations(rows[3])[0] > 0


@pytest.mark.parametrize(
    "slip, said", [("data=x", "data= means nothing"), ("MODEL=x", "MODEL= means nothing"), ("DATA=", "DATA= is empty")]
)
def test_a_variable_that_would_start_another_study_is_refused(slip, said):
    done = subprocess.run(["make", "-n", "all", slip], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and not done.stdout


def test_no_encoder_at_all_is_said():
    done = subprocess.run(["make", "-n", "all", "DATA=x", "CLIP=", "IMAGENET="], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "CLIP= and IMAGENET= are both empty" in done.stderr
