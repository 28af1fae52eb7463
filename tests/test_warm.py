"""bench/warm.py: what make runs as forks of one process ends, prints and dies as it would by itself."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")
SCRIPT = """import os, sys, time
if __name__ == "__main__":
    print(sys.argv, "torch" in sys.modules, __file__, os.getcwd(), sys.stdin.read(), flush=True)
    print("told", file=sys.stderr)
    if sys.argv[1] == "wait":
        open("waits", "w").write(str(os.getpid()))
        time.sleep(60)
    if sys.argv[1] == "raise":
        raise ValueError("wrong")
    os.kill(os.getpid(), 9) if sys.argv[1] == "die" else sys.exit(int(sys.argv[1]))
"""


LIGHT = f"import sys; sys.path.insert(0, {str(ROOT / 'bench')!r}); import warm; warm.NEEDED = (); warm.main()"


def start(folder, recipe, light=True, **pipes):
    """make in a folder, its recipe being run as forks, of a process that has imported little if `light`; {} is the script."""
    (folder / "script.py").write_text(SCRIPT)
    (folder / "Makefile").write_text("all:\n" + "".join(f"\t@{line.format(f'{sys.executable} script.py')}\n" for line in recipe))
    command = [sys.executable, *(["-c", LIGHT] if light else [ROOT / "bench" / "warm.py"]), "--while", "make"]
    command += [f"SHELL={sys.executable}", f".SHELLFLAGS={ROOT / 'bench' / 'warm.py'}"]
    return subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, text=True, start_new_session=True, **pipes)


def ended(folder, recipe):
    running = start(folder, recipe, False, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return *running.communicate(timeout=60), running.returncode


def waiting(folder):
    """Process of the script that waits, as soon as it does."""
    for _ in range(600):
        if (folder / "waits").exists() and (said := (folder / "waits").read_text()):
            return int(said)
        time.sleep(0.05)
    raise AssertionError("nothing waits")


def alive(process):
    return Path(f"/proc/{process}/stat").exists() and Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"


def gone(process):
    for _ in range(100):
        if not alive(process):
            return True
        time.sleep(0.05)
    return False


def test_a_run_reads_prints_and_ends_as_by_itself(tmp_path):
    out, err, code = ended(tmp_path, ["{} 0 'a b'", "-{} 3", "-{} die", "-{} raise", "echo $$((1 + 1)); {} 0 > file", "{} 5"])
    lines = out.splitlines()
    assert lines[0] == f"['script.py', '0', 'a b'] True script.py {tmp_path} " and lines[1].startswith("['script.py', '3'] True")
    assert lines[4] == "2" and "False" in (tmp_path / "file").read_text()  # a shell's line is the shell's
    assert "Error 3" in err and "Killed" in err and "ValueError: wrong" in err and err.count("told") == 6
    assert code == 2 and "Error 5" in err


def test_without_the_process_lines_are_a_shells(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    line = shlex.join([sys.executable, "script.py", "4"])
    for place in ({}, {"WARM_SOCKET": str(tmp_path / "none"), "WARM_PYTHON": sys.executable}):
        command = [sys.executable, ROOT / "bench" / "warm.py", line]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | place, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 4 and "['script.py', '4'] False" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_all_end_with_what_ends_all(tmp_path, number):
    running = start(tmp_path, ["{} wait"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    script = waiting(tmp_path)
    os.killpg(running.pid, number)
    assert running.wait(20) and gone(script)


def children(process):
    return [int(p) for p in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_a_run_ends_with_whoever_waits_for_it(tmp_path):
    running = start(tmp_path, ["-{} wait", "{} 0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    script = waiting(tmp_path)
    [make] = [child for child in children(running.pid) if child != script]
    [waits] = children(make)
    os.kill(waits, signal.SIGKILL)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0 and gone(script) and "Killed" in err and "'0'" in out


def test_a_signal_for_make_alone_reaches_the_run(tmp_path):
    running = start(tmp_path, ["{} wait"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    script = waiting(tmp_path)
    running.terminate()
    _, err = running.communicate(timeout=20)
    assert running.returncode and gone(script) and "Terminated" in err


def test_runs_end_with_the_process_they_are_forks_of(tmp_path):
    running = start(tmp_path, ["{} wait"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    script = waiting(tmp_path)
    running.kill()
    assert gone(script)
