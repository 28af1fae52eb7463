"""What takes longer of several processes: real jobs of torchrun that are interrupted, or lose a process.

python -m pytest -q tests/distributed.py        # about a minute
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import common
import finetune

SCRIPT = """import os, pathlib, sys
sys.path.insert(0, {root!r})
sys.argv[0] = "{script}.py"
import common, {script}
pathlib.Path("pid" + os.environ["RANK"]).write_text(str(os.getpid()))
{before}
{script}.main()
"""


def torchrun(count, *command, script="finetune", before=""):
    """A job of torchrun, whose processes write their numbers into pid0, pid1, ..."""
    Path("ranks.py").write_text(SCRIPT.format(root=str(ROOT), script=script, before=before))
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", count, "ranks.py", *command]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen(list(map(str, program)), env=os.environ | {"OMP_NUM_THREADS": "1"}, **options)


def wait_for(file, job, limit=60):
    end = time.time() + limit
    while not list(Path().glob(file)):
        assert job.poll() is None and time.time() < end, job.communicate()
        time.sleep(0.02)


COMMAND = ["--data", "tiny", "--model", "toy-RN", "--device", "cpu"]
TUNED = [*COMMAND, "--precision", "float32", "--epochs", 16, "--batch", 8]


def ended(job, words):
    """The job has failed, and one line of ours says so."""
    out, error = job.communicate(timeout=60)
    ours = [line for line in error.splitlines() if "finetune.py: " in line]
    assert job.returncode and len(ours) == 1 and words in ours[0] and "run it again" in ours[0], error
    assert "Exception ignored" not in error and not list(Path().rglob(f"{common._MINE}*"))


@pytest.mark.parametrize("way", ["interrupted", "first killed", "second killed", "torchrun ended"])
def test_it_ends_with_one_line_and_goes_on(world, call, way):
    code, *_ = call(finetune.main, *TUNED, "--out", "one.json")
    assert code == 0
    job = torchrun(2, *TUNED, "--out", "two.json")
    wait_for("two.0.ckpt", job)
    if way == "interrupted":
        os.killpg(job.pid, signal.SIGINT)  # as a terminal does
    elif way == "torchrun ended":
        job.terminate()
    else:
        os.kill(int(Path("pid0" if way == "first killed" else "pid1").read_text()), signal.SIGKILL)
    # of one that is killed the other may hear first from the connection or from torchrun: both say that it has ended
    ended(job, {"interrupted": "interrupted", "torchrun ended": "ended by torchrun"}.get(way, "has ended"))
    assert not Path("two.json").exists()
    job = torchrun(3, *TUNED, "--out", "two.json")
    out, error = job.communicate(timeout=120)
    assert job.returncode == 0 and "goes on from two.0.ckpt" in out, error
    one, two = (common.read_result(Path(f"{name}.json"))[0]["history"] for name in ("one", "two"))
    assert [row.get("step") for row in one] == [row.get("step") for row in two]
    for a, b in list(zip(one, two))[1:5]:  # later the rounding of the first steps has grown
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-2)


def test_features_that_lose_a_process_are_whole_or_absent(world, call):
    job = torchrun(2, *COMMAND, "--batch", 1, script="linear_probe", before="common._CHUNK = 2")
    wait_for("cache/features/*/*.npz", job)
    os.kill(int(Path("pid1").read_text()), signal.SIGKILL)
    job.communicate(timeout=60)
    assert job.returncode
    kept = {path: np.load(path)["x"] for path in Path("cache/features").rglob("*.npz")}
    assert 0 < len(kept) < 32
    job = torchrun(2, *COMMAND, "--batch", 1, script="linear_probe", before="common._CHUNK = 2")
    assert job.communicate(timeout=60) and job.returncode == 0
    made = {path: np.load(path)["x"] for path in Path("cache/features").rglob("*.npz")}
    assert len(made) == 32 and all(np.array_equal(made[path], x) for path, x in kept.items())
