"""Determinism: a command says the same each time, in whatever order, on however many threads, however workers are started.

    python -m pytest -q tests/determinism.py      # a minute on an idle machine

What of it is fast is in tests/test_determinism.py.
"""

import multiprocessing
import os
import subprocess
import sys

import pytest
from conftest import ROOT

import toy
from common import read_result

RUNS = {
    "zero_shot": "",
    "prompts": "--templates t.txt",
    "linear_probe": "--save head.safetensors --suspects suspects.csv",
    "few_shot": "--shots 1 2 --seeds 2",
    "finetune": "--epochs 2 --batch 12 --lr 1e-3 --save net.safetensors",
    "finetune cs": "--method cs --epochs 2 --batch 12 --lr 1e-3",
    "upsample train": "train --blocks 1 --width 8 --epochs 2 --adversarial 1 --save srgan.safetensors",
}


def run_all(folder, made, order, threads):
    """All scripts in one process, in this order, in a new folder, which it returns."""
    folder.mkdir()
    for place in made:
        (folder / place.name).symlink_to(place)
    (folder / "t.txt").write_text("a {}\nthe {}\na photo of a {}.\n")
    program = f"import sys, torch\ntorch.set_num_threads({threads})\n"
    for name in order:
        script, _, _ = name.partition(" ")
        model = "" if script == "upsample" else "--model toy-RN "
        words = f"{script}.py {RUNS[name]} --data tiny {model}--out results/{name.replace(' ', '-')}.json"
        program += f"import {script}\nsys.argv = {words.split()!r}\n{script}.main()\n"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"},
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def made(tiny, trained_toys):
    """Where the data and the weights lie."""
    return tiny / "data", trained_toys / "weights"


@pytest.fixture(scope="module")
def first(made, tmp_path_factory):
    return run_all(tmp_path_factory.mktemp("first") / "here", made, RUNS, 1)


def test_the_same_command_writes_the_same(first, made, tmp_path):
    second = run_all(tmp_path / "there", made, reversed(RUNS), 1)
    same = [sys.executable, str(ROOT / "bench/same.py"), str(first / "results"), str(second / "results")]
    done = subprocess.run(same, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    files = sorted(file.name for file in first.glob("*.safetensors"))
    assert len(files) == 3 and all((first / file).read_bytes() == (second / file).read_bytes() for file in files)


def test_threads_change_at_most_one_image(first, made, tmp_path):
    """Sums are made in another order then, and so end in other last bits."""
    second = run_all(tmp_path / "there", made, RUNS, 2)
    for name in RUNS:
        (one, arrays), (two, others) = (read_result(folder / f"results/{name.replace(' ', '-')}.json") for folder in (first, second))
        if "right" in arrays:
            wrong = abs(arrays["right"].astype(int).sum(2) - others["right"].astype(int).sum(2))
            assert wrong.max() <= 1, (name, wrong.max())
        else:
            assert one["metrics"]["val_psnr"] == pytest.approx(two["metrics"]["val_psnr"], abs=0.05)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_pictures_are_the_same_however_workers_are_started(method):
    """Copied, anew, or by a server that is not who waits for them: each system and each Python has another custom."""
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        drawn = toy.draw_many(["red apple", "blue fig"], False, 3)
    finally:
        multiprocessing.set_start_method(usual, force=True)
    assert all((a == toy.draw_numbered(3, i, n, False)[0]).all() for i, (n, (a, _)) in enumerate(zip(["red apple", "blue fig"], drawn)))
