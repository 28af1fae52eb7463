"""Faults: readers that go away, full disks, kills, twins and odd names lose nothing and end in a line."""

import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
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


def test_names_command_no_terminal(world, capsys):
    """Escape sequences in the names of a class and of a picture that is skipped, and in a line that ends a program."""
    shutil.copytree(world / "data" / "tiny", "own")
    folder = Path("own/Test/red\x1b[31m apple")
    folder.mkdir(parents=True)
    (folder / "1\x1b]0;x\x07.jpg").write_bytes(b"no picture")
    done = subprocess.run([*ZERO_SHOT, "--data", "./own"], capture_output=True)
    assert done.returncode == 0 and b"\x1b" not in done.stdout and b"\\x1b" in done.stdout
    with pytest.raises(SystemExit):
        common.fail("a\x1b[31m\nb")
    assert capsys.readouterr().err.partition(": ")[2] == "a\\x1b[31m\\nb\n"


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
    fork, (ears, mouth) = multiprocessing.get_context("fork"), multiprocessing.Pipe(duplex=False)

    def hold(name, seconds):
        with redirect_stdout(io.StringIO()) as said, lock(tmp_path / "x"):
            mouth.send((name, said.getvalue()))
            time.sleep(seconds)

    owner, twin = (fork.Process(target=hold, args=args) for args in (("owner", 60), ("twin", 0)))
    owner.start()
    assert ears.recv() == ("owner", "")
    twin.start()
    assert not ears.poll(0.5)
    owner.kill()
    assert ears.recv() == ("twin", f"note: waits for another run, which makes {tmp_path / 'x'}\n")
    owner.join()
    twin.join()


def test_ctrl_c_is_a_line(world):
    """While threads read pictures: those that they have not begun are not read any more."""
    slow = "lambda *a: (print('reads\\n', end='', flush=True), time.sleep(0.5))"
    program = f"import signal, sys, time, common, zero_shot\ncommon._read_image = {slow}\n"
    program += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # what is started in the background ignores it
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
