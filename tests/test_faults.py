"""Faults: readers that go away, full disks, kills, twins and odd names lose nothing and end in a line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

import common
from common import atomic, lock

ZERO_SHOT = [sys.executable, str(ROOT / "zero_shot.py"), "--data", "tiny", "--model", "toy-RN"]


@pytest.mark.parametrize("output", ["| head -1", "> /dev/full"])
def test_who_reads_no_further_loses_no_result(world, output):
    command = f"set -o pipefail; {' '.join(ZERO_SHOT)} --out r.json {output}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(Path("r.json").read_text())["metrics"]["top1"] >= 0
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == (output == "> /dev/full"), done.stderr


def test_names_command_no_terminal(world):
    """Escape sequences in the name of a picture that is skipped, and in that of a class, which ends the second program."""
    shutil.copytree(world / "data" / "tiny", "own")
    folder = Path("own/Test/red\x1b[31m apple")
    folder.mkdir(parents=True)
    (folder / "1\x1b]0;x\x07.jpg").write_bytes(b"no picture")
    for script, code in (("zero_shot.py", 0), ("linear_probe.py", 2)):
        done = subprocess.run([sys.executable, str(ROOT / script), *ZERO_SHOT[2:], "--data", "./own"], capture_output=True)
        assert done.returncode == code and done.stderr.count(b"\n") == code / 2
        assert b"\x1b" not in done.stdout + done.stderr and b"\\x1b" in done.stdout + done.stderr


def test_what_a_kill_has_left_is_swept_and_a_living_twin_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {pid: tmp_path / f"{common._MINE}{pid}-x.npy" for pid in (dead.pid, 1, os.getppid())}
    other = tmp_path / f".another-{dead.pid}-x.npy"  # of a machine that shares the folder
    for file in (*names.values(), other):
        file.touch()
    with atomic(tmp_path / "y.json") as temporary:
        temporary.write_text("{}")
    assert {p.name for p in tmp_path.iterdir()} == {"y.json", other.name, names[1].name, names[os.getppid()].name}


def test_a_twin_waits_and_a_dead_one_keeps_no_lock(tmp_path):
    hold = f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from common import lock\nwith lock({str(tmp_path / 'x')!r}):"
    owner = subprocess.Popen([sys.executable, "-c", f"{hold} print('has', flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
    assert owner.stdout.readline() == b"has\n"
    twin = subprocess.Popen([sys.executable, "-c", f"{hold} print('has', flush=True)"], stdout=subprocess.PIPE, text=True)
    assert twin.stdout.readline() == f"note: waits for another run, which makes {tmp_path / 'x'}\n"
    owner.kill()
    assert twin.communicate(timeout=20)[0] == "has\n"
    with lock(tmp_path / "x"):
        pass
    owner.wait()


def test_ctrl_c_is_a_line(world):
    """While threads read pictures: those that they have not begun are not read any more."""
    slow = "lambda *a: (print('reads\\n', end='', flush=True), time.sleep(0.5))"
    program = f"import sys, time, common, zero_shot\ncommon._read_image = {slow}\n"
    program += "sys.argv = ['zero_shot.py', '--model', 'toy-RN', '--images', 'data/tiny/Test', '--labels', 'a']\nzero_shot.main()"
    running = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=path())
    seen = 0
    while seen < 9:  # more than there are threads, so that all 32 wait for one
        seen += running.stdout.readline() == "reads\n"
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert running.returncode == -signal.SIGINT and out.count("reads") < 10
    assert err.strip() == "zero_shot.py: interrupted; run it again to go on from what is kept"
    assert not list(Path("cache").rglob(f"{common._MINE}*"))


def path():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_toy_and_its_workers_die_with_who_called_them(tmp_path):
    caller = subprocess.Popen([sys.executable, "-c", "import common; common._make_toy()"], cwd=tmp_path, env=path())

    def below(pid):
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
        return [int(child) for child in found] + [grand for child in found for grand in below(child)]

    while len(family := below(caller.pid)) < 2:  # toy.py, and a worker that draws
        time.sleep(0.1)
    caller.kill()
    caller.wait()
    until = time.time() + 5
    while any(common._alive(str(pid)) for pid in family) and time.time() < until:
        time.sleep(0.1)
    assert not any(common._alive(str(pid)) for pid in family)
