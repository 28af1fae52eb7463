"""Other machines: what Windows would not allow, two machines that share a folder, other locales, homes and ways to start processes."""

import inspect
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import refused

import common
import linear_probe
import toy
import zero_shot

WATCHED = []  # the files that were open when they were moved or taken away; None while nobody watches


def watch(event, args):
    """Windows neither moves nor takes away what this process has open or mapped. An audit hook stays, so there is but one."""
    if event in ("os.rename", "os.remove") and WATCHED:
        held = {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
        held |= {line.split(maxsplit=5)[5].strip() for line in Path("/proc/self/maps").read_text().splitlines() if line.count("/")}
        for path in args[: 2 if event == "os.rename" else 1]:
            if not str(path).endswith(".lock"):  # of which it is known, and no matter
                WATCHED[0].append((event, path, os.path.realpath(path) in held))


@pytest.fixture
def watched():
    """[(event, path, whether it was open)] of this test."""
    if "on" not in vars(watch):
        sys.addaudithook(watch)
        watch.on = True
    WATCHED.append([])
    yield WATCHED[0]
    WATCHED.clear()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_nothing_is_moved_or_taken_away_while_it_is_open(world, call, watched):
    code, _, err = call(linear_probe.main, "--data", "tiny", "--model", "toy-RN", "--out", "r.json", "--save", "h.safetensors")
    assert code == 0 and not err
    assert len(watched) > 12 and not [(event, path) for event, path, held in watched if held]
    with open("x", "w") as file:  # it would be seen
        os.replace("x", "y")
        file.flush()
    assert watched[-2:] == [("os.rename", "x", True), ("os.rename", "y", False)]


def test_what_windows_has_not_is_not_needed(world, call, monkeypatch):
    """An archive, a cache and a lock without the functions that are POSIX alone."""
    monkeypatch.setattr(common, "fcntl", None)
    for name in ("pread", "posix_fallocate", "sysconf", "getuid", "fork", "fchmod", "mkfifo"):
        monkeypatch.delattr(os, name, raising=False)
    shutil.make_archive("own", "zip", "data/tiny")
    with common.lock("x"):
        code, out, err = call(zero_shot.main, "--data", "own.zip", "--model", "toy-RN", "--out", "r.json")
    assert code == 0 and not err and "skipped" not in out and "own: 32 test images" in out


def test_windows_would_end_a_process_that_is_asked_whether_it_lives(monkeypatch):
    asked, threads = [], threading.active_count()
    with monkeypatch.context() as windows:  # not for long, because pathlib asks for the name, too
        windows.setattr(os, "kill", lambda *given: asked.append(given))
        windows.setattr(os, "name", "nt")
        alive = common._alive("1")
        toy.end_with(os.getppid())  # a launcher's there, perhaps
    assert alive and not asked and threading.active_count() == threads


def test_names_of_caches_are_legal_everywhere():
    assert common.spelled("ViT-L/14@336px") == "ViT-L-14-336px" and common.spelled("C:\\my\\net.py:a") == "C--my-net.py-a"


def test_who_has_no_home_is_told_where_weights_are(world, capsys, monkeypatch):
    """As a container runs for a user without a name."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert "ViT-B/32: its weights cannot be downloaded" in refused(capsys, "ViT-B/32", "cpu")


def test_who_has_no_terminal_sees_no_bar(world, call, monkeypatch):
    """Standard error may be closed; tqdm asks it all the same whether it is a terminal."""
    monkeypatch.setattr(sys, "stderr", None)
    assert list(common.progress([1, 2], "", "img")) == [1, 2]


def test_words_of_a_command_line_are_text_in_any_locale():
    """A process whose locale knows but ASCII gets each byte as a letter of its own, which CLIP's tokenizer would take for another word."""
    program = "import os, re, sys\nfrom contextlib import suppress\n" + inspect.getsource(common._as_text) + inspect.getsource(common._said)
    program += "print(ascii([_said(word) for word in sys.argv[1:]]))"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ["caf\udce9", "ein Äpfel: {}", "a {}"]
    for locale in (plain, {"LC_ALL": "C.UTF-8"}):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, env=os.environ | locale)
        assert done.stdout.strip() == ascii(words), done.stderr


# ---- two machines that share a folder -------------------------------------------------------------------------------------


def test_numbers_of_processes_mean_something_on_one_machine_and_in_one_container():
    """What runs in another space of process numbers must not take a living run's file for that of a dead one."""
    program = "import hashlib, os, platform\nfrom contextlib import suppress\nfrom pathlib import Path\n"
    program = [sys.executable, "-c", program + inspect.getsource(common._here) + "print(_here())"]
    here = subprocess.run(program, capture_output=True, text=True).stdout.strip()
    there = subprocess.run(["unshare", "-rpf", *program], capture_output=True, text=True).stdout.strip()
    if not there:
        pytest.skip("needs a container of its own")
    assert f".{here}-" == common._MINE and len(there) == len(here) and there != here


def test_a_cache_of_two_machines_serves_both(world, call, monkeypatch):
    """One with another torch, whose captions and features are other ones: each keeps its own, and sweeps nothing of the other's."""
    run = zero_shot.main, "--data", "tiny", "--model", "toy-RN", "--precision", "float32"
    first = call(*run)
    mine = {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in Path("cache").rglob("*.*")}
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    half = [folder / f"{common._MINE}{dead.pid}-x.npy" for folder in {file.parent for file in mine}]  # to them it may be alive
    for file in half:
        file.touch()
    with monkeypatch.context() as there:
        there.setattr(common, "_MINE", ".another-")
        there.setattr(torch, "__version__", "another")
        assert call(*run) == first
    new = {file for file in Path("cache").rglob("*.*") if file not in half} - {*mine}
    assert [file.suffix for file in new] == [".npz", ".npz"] and all(file.exists() for file in half)
    assert call(*run) == first and {*Path("cache").rglob("*.*")} == {*mine, *new, *half}
    assert mine == {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in mine}
