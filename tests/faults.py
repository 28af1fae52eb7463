"""What breaks? Long random trials with a fixed seed; at their end one table, which docs/methods.md keeps: `make test-faults`.

    OMP_NUM_THREADS=1 python -m pytest -q tests/faults.py
    OMP_NUM_THREADS=1 TRIALS=50 MAKES=50 python -m pytest -q tests/faults.py -k kill

A trial is survived if it ends in a result, or in one line with exit code 2 (of Ctrl-C with that signal) that names what is wrong: no
traceback, no hang, no half of a file under its name, nothing left over, nothing written elsewhere or run, and never another number.
TRIALS is how often each script is killed, finds its disk full, or runs twice at once, MAKES how often a whole `make all` is killed.
"""

import contextlib
import csv
import ctypes
import faulthandler
import importlib
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
import warnings
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import strategies as st
from PIL import Image
from tqdm import tqdm

import common
import toy

sys.path.append(str(ROOT / "bench"))  # last, because some programs there are called like scripts
import same

TRIALS, MAKES = (int(os.environ.get(name, usual)) for name, usual in (("TRIALS", 6), ("MAKES", 2)))
SCRIPTS = "zero_shot few_shot linear_probe finetune upsample prompts plot toy"
HANG = 300  # seconds after which a trial that takes some hangs

# ---- the table, and the processes in which trials are made --------------------------------------------------------------


@pytest.fixture(scope="session")
def table(request):
    """[(what was tried, how many, [what broke])], printed at the end."""
    rows = []
    yield rows
    lines = ["| what was tried | how many | survived |", "|---|---|---|"]
    lines += [f"| {what} | {count:,} | {count - len(broke):,} |" for what, count, broke in rows]
    lines += [f"broke: {what}: {line}" for what, _, broke in rows for line in broke]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\n" + "\n".join(lines))


@pytest.fixture(scope="session")
def pool():
    """Two clean processes which have imported all: from them others fork in milliseconds."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["faults", "clip.model", "matplotlib.figure", "safetensors.torch", "torchvision", *SCRIPTS.split()])
    with ProcessPoolExecutor(2, context) as workers:
        yield workers


def tried(table, futures):
    """A row of the table for each {what was tried: [futures of [(name of a trial, what broke or "")]]}; fails where anything broke."""
    wrong = []
    for what, parts in futures.items():
        done = []
        for future in parts:
            attempt(done, "", lambda: done.extend(future.result()))  # noqa: B023
        done = [trial for trial in done if any(trial)]
        broke = [f"{name}: {how}" for name, how in done if how]
        table.append((what, len(done), broke))
        wrong += broke or ([] if done else [f"{what}: nothing"])
    assert not wrong, "\n".join(wrong[:20])


def attempt(trials, name, trial, *args):
    """Make a trial, which asserts what it must, and note how it went."""
    try:
        trial(*args)
    except Exception as error:
        where = "" if isinstance(error, AssertionError) else "".join(traceback.format_tb(error.__traceback__)[-2:])
        trials.append((name, f"{type(error).__name__}: {str(error)[:3000]} {where}".strip()))
    else:
        trials.append((name, ""))


@contextlib.contextmanager
def at_most(seconds):
    """AssertionError where it takes longer."""

    def end(*_):
        raise AssertionError(f"hangs: more than {seconds} s")

    signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def call(script, *flags):
    """(exit code, stdout, stderr) of main() of a script, in this process and the current folder."""
    sys.argv = [f"{script}.py", *map(str, flags)]
    return heard(importlib.import_module(script).main)


def heard(function):
    """(exit code, stdout, stderr) of a function that may end as scripts do."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err, at_most(HANG):
        try:
            code = function() or 0
        except SystemExit as end:
            code = end.code or 0
    return code, out.getvalue(), err.getvalue()


def refused_well(script, code, err):
    """Assert that it ended in a result, or in one line of its own."""
    lines = [line for line in err.rstrip("\n").split("\n") if "Warning" not in line]
    assert code in (0, 2) or (script == "plot" and code == 1), f"exit code {code}: {err[-300:]}"
    if code == 2:
        assert lines and re.match(rf"{script}\.py( train| apply| eval)?: ", lines[-1]), err[-300:]
        assert len(lines) == 1 or err.startswith("usage: "), err[-300:]
        assert err.startswith("usage: ") or not re.search(r"[\0-\x08\x0b-\x1f\x7f-\x9f]", err), ascii(err[-300:])


def start(script, flags, log, before=lambda: None):
    """The number of a process that runs main() of a script as python would; what it says goes to log.out and log.err."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        return pid
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, name in ((1, f"{log}.out"), (2, f"{log}.err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
        out, sys.stderr = (open(number, "w", 1, errors="surrogateescape", closefd=False) for number in (1, 2))  # noqa: SIM115
        sys.stdout = common._Printed(out)
        sys.argv = [f"{script}.py", *flags]
        before()
        tqdm.set_lock(threading.RLock())  # its own is shared by forks: who is killed while holding it would stop all that come after
        faulthandler.dump_traceback_later(HANG - 10, file=2)  # where it hangs, if it does
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        code = importlib.import_module(script).main() or 0
    except SystemExit as end:
        code = end.code or 0
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        common._end(*sys.exc_info())
        code = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        if code < 0:
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code)


def ended(pid, log, seconds=HANG):
    """The exit code of a process, negative where a signal was its end, once it has ended; what it says goes to log."""
    until = time.time() + seconds
    while time.time() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"hangs: more than {seconds} s: {' '.join(said(log))[-3000:]}")


def said(log):
    """What it said: (stdout, stderr)."""
    files = (Path(f"{log}.{end}") for end in ("out", "err"))
    return tuple(f.read_text(errors="replace") if f.exists() else "" for f in files)


def orphans(session):
    """Processes of a session that live on."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = place.read_text().rpartition(")")[2].split()
            found += [place.parent.name] if int(fields[3]) == session and fields[0] != "Z" else []
    return found


# ---- small worlds -------------------------------------------------------------------------------------------------------

DATA = "--data tiny --model toy-RN"
COMMANDS = {
    "zero_shot": f"zero_shot {DATA} --grid g.png --out r.json",
    "few_shot": f"few_shot {DATA} --seeds 2 --shots 1 2 --out r.json",
    "linear_probe": f"linear_probe {DATA} --save h.safetensors --suspects s.csv --out r.json",
    "finetune": f"finetune {DATA} --epochs 2 --batch 8 --lr 1e-3 --save n.safetensors --out r.json",
    "prompts": f"prompts {DATA} --out r.json",
    "upsample train": "upsample train --data tiny --blocks 1 --width 8 --epochs 2 --adversarial 1 --save g.safetensors --out r.json",
    "upsample apply": "upsample apply --data tiny --weights given/g.safetensors --size 64 --to large",
    "upsample eval": "upsample eval --data tiny --weights given/g.safetensors --grid e.png --out r.json",
    "plot": "plot --data tiny --results given/results --to pics --readme page.md",
    "toy": "toy",
}


@pytest.fixture(scope="session")
def given(tiny, pool):
    """The world of conftest.py, and in given/ what scripts save there and read: heads, networks, generators, results."""
    pool.submit(make_given, tiny).result()
    return tiny


def make_given(tiny):
    (tiny / "given").mkdir()
    with tempfile.TemporaryDirectory() as folder:
        enter(tiny, folder)
        saved = {"linear_probe": "h.safetensors", "finetune": "n.safetensors", "upsample train": "g.safetensors"}
        for name in ("upsample train", "zero_shot", "few_shot", "prompts", "linear_probe", "finetune"):
            script, *flags = COMMANDS[name].split()
            code, _, err = call(script, *flags)
            assert code == 0, err
            if name in saved:
                shutil.copy(saved[name], tiny / "given")
            for end in (".json", ".npz"):
                if name != "upsample train" and Path(f"r{end}").exists():
                    place = tiny / "given" / "results" / script / "tiny" / f"toy-RN{'-ml-1e-3' * (script == 'finetune')}{end}"
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(f"r{end}", place)


def enter(tiny, folder):
    """Go into a folder that sees the world."""
    os.chdir(folder)
    for name in ("data", "weights", "given"):
        os.symlink(tiny / name, name)


def small_toy():
    """toy.py by a world of seconds: 4 classes of 3 pictures, and encoders that see 160."""
    multiprocessing.set_start_method("fork", force=True)
    toy.write_data.__defaults__ = (toy.TOY[:4], 2, 1, 0)
    toy.IMAGES, toy.PLANS = 160, tuple((name, 2, rate) for name, _, rate in toy.PLANS)


def outcome(folder, whole=True):
    """{file: what is in it, but for times} of all that scripts leave below a folder for others to read; `whole` with checkpoints."""
    found = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".") and f != "cache"]
        for file in (Path(place, f) for f in files if not f.startswith(".") and (whole or not f.endswith(".ckpt"))):
            if file.is_symlink():
                continue
            name, data = str(file.relative_to(folder)), file.read_bytes()
            if file.suffix == ".json":
                found[name] = {k: v for k, v in same.flat(json.loads(data)).items() if not {*same.FREE} & {*k.split(".")}}
            elif file.suffix == ".npz":
                with np.load(file) as arrays:
                    found[name] = {key: (a.dtype.str, a.shape, a.tobytes()) for key, a in arrays.items()}
            else:
                found[name] = re.sub(rb"\b[\d.,]+ s\b|\b[\d,.]+ images/s", b"", data) if file.suffix == ".md" else data
    return found


def hidden(folder):
    return {f for _, folders, files in os.walk(folder) for f in folders + files if f.startswith(".")}


def differ(found, wanted):
    """In words, how an outcome differs from another."""
    for name in {**found, **wanted}:
        a, b = found.get(name), wanted.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            a, b = ({k: v for k, v in x.items() if not (same.equal(v, y.get(k)))} for x, y in ((a, b), (b, a)))
        if a != b:
            return f"{name}: {str(a)[:150]} for {str(b)[:150]}"
    return ""


def uninterrupted(tiny, name, before=lambda: None):
    """(outcome, hidden names, seconds, bytes in all) of a command that nothing disturbs."""
    script, *flags = COMMANDS[name].split()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as logs:
        if script == "toy":
            os.chdir(folder)
        else:
            enter(tiny, folder)
        began = time.time()
        code = ended(start(script, flags, f"{logs}/1", before), f"{logs}/1")
        assert code == 0, said(f"{logs}/1")
        size = sum(f.stat().st_size for place, _, files in os.walk(folder) for f in (Path(place, n) for n in files))
        return outcome(folder), hidden(folder), time.time() - began, size


# ---- kills, twins and full disks ----------------------------------------------------------------------------------------


def kill(tiny, name, wanted, moment, how):
    """Start it, end it by a signal, and run it to its end."""
    (results, left, seconds, _), (script, *flags) = wanted, COMMANDS[name].split()
    before = small_toy if script == "toy" else lambda: None
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as logs:
        log, again = f"{logs}/1", f"{logs}/2"
        enter(tiny, folder) if script != "toy" else os.chdir(folder)
        pid = start(script, flags, log, before)
        time.sleep(moment * seconds)
        os.kill(pid, how)  # until ended() has asked, its number stays its own
        code, err = ended(pid, log, 30), said(log)[1]
        assert code in (0, -how), f"exit code {code}: {err[-400:]}"
        assert "Traceback" not in err and "Exception ignored" not in err, err[-900:]
        until = time.time() + 5
        while (alive := orphans(pid)) and time.time() < until:
            time.sleep(0.05)
        assert not alive, f"{len(alive)} processes live on"
        half = {file: value for file, value in outcome(folder, False).items() if differ({file: value}, {file: results.get(file)})}
        assert not half, f"half of {[*half][:3]}"
        code = ended(start(script, flags, again, before), again)
        assert code == 0, said(again)[1][-600:]
        assert not (lacks := differ(outcome(folder), results)), lacks
        assert not (more := hidden(folder) - left), f"left over: {sorted(more)[:3]}"


def kills(tiny, name, seed, count):
    rng, trials = random.Random(f"{name} {seed}"), []
    wanted = uninterrupted(tiny, name, small_toy if name == "toy" else lambda: None)
    for _ in range(count):
        moment, how = rng.random(), rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        attempt(trials, f"{name} by {how.name} at {moment:.3f} of {wanted[2]:.1f} s", kill, tiny, name, wanted, moment, how)
    return trials


def test_kill(table, pool, given):
    halves = -(-TRIALS // 2), TRIALS // 2
    futures = [pool.submit(kills, given, name, seed, n) for name in COMMANDS for seed, n in enumerate(halves) if n]
    tried(table, {f"{len(COMMANDS)} scripts and tasks killed at a random moment, and run again": futures})


def interrupted(tiny, seed, count):
    """Ctrl-C while a real process starts, which imports for seconds: a line, if common.py has come so far."""
    rng, trials = random.Random(seed), []

    def trial(name, moment):
        with tempfile.TemporaryDirectory() as folder:
            enter(tiny, folder) if name != "toy" else os.chdir(folder)
            script, *flags = COMMANDS[name].split()
            command = [sys.executable, ROOT / f"{script}.py", *flags]
            hears = {**os.environ, "PYTHONFAULTHANDLER": "1"}
            running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=hears)
            time.sleep(moment)
            running.send_signal(signal.SIGINT)
            try:
                err = running.communicate(timeout=60)[1]
            except subprocess.TimeoutExpired:  # it says where it hangs, and how it ends is wrong
                running.send_signal(signal.SIGABRT)
                err = running.communicate()[1]
            if "init_import_site" in err:  # not even Python had begun
                return
            assert running.returncode in (0, -signal.SIGINT), f"exit code {running.returncode}: {err[:2900]}"
            assert "site-packages" not in err and "Exception ignored" not in err, err

    for _ in range(count):
        name, moment = rng.choice([*COMMANDS]), rng.uniform(0.2, 4)
        attempt(trials, f"{name} after {moment:.2f} s", trial, name, moment)
    return trials


def test_interrupted_start(table, pool, given):
    futures = [pool.submit(interrupted, given, seed, 3 * TRIALS) for seed in (0, 1)]
    tried(table, {"Ctrl-C in the first seconds of a script": futures})


def twins(tiny, name, count):
    """Two at once on a cold cache, which write the same files."""
    (script, *flags), (results, left, *_) = COMMANDS[name].split(), uninterrupted(tiny, name)
    trials = []

    def twin():
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as logs:
            enter(tiny, folder)
            pids = [start(script, flags, f"{logs}/{i}") for i in range(2)]
            codes = [ended(pid, f"{logs}/{i}") for i, pid in enumerate(pids)]
            assert codes == [0, 0], str([said(f"{logs}/{i}")[1][-400:] for i, code in enumerate(codes) if code])
            assert not (lacks := differ(outcome(folder), results)), lacks
            assert not (more := hidden(folder) - left), f"left over: {sorted(more)[:3]}"

    for _ in range(count):
        attempt(trials, f"{name} twice", twin)
    return trials


TWINS = [name for name in COMMANDS if name not in ("toy", "plot")]


def test_twins(table, pool, given):
    tried(table, {"two runs of a script at once on an empty cache": [pool.submit(twins, given, name, TRIALS) for name in TWINS]})


def small_disk(folder, size):
    """Mount a disk of so many bytes at a folder, for this process alone."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if libc.unshare(0x20000 | (0x10000000 if user else 0)):  # CLONE_NEWNS, CLONE_NEWUSER
        raise OSError(ctypes.get_errno(), "unshare")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None)  # MS_REC, MS_PRIVATE
    if libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), "mount")
    return lambda size: libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0x20, f"size={size}".encode())  # MS_REMOUNT


def full(tiny, name, wanted, folder, size, whole_disk):
    """Run it where the disk, or the largest file that may be, has so many bytes; then again with room."""
    (results, left, *_), (script, *flags) = wanted, COMMANDS[name].split()
    with tempfile.TemporaryDirectory() as logs:
        log, again = f"{logs}/1", f"{logs}/2"
        grow = small_disk(folder, size) if whole_disk else lambda size: None
        enter(tiny, folder)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = (lambda: None) if whole_disk else (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1])))
        code = ended(start(script, flags, log, before), log)
        out, err = said(log)
        assert code in (0, 2) and "Traceback" not in err and "Exception ignored" not in err, f"exit code {code}: {err[-900:]}"
        assert (code == 0 and not err) or (err.startswith(f"{script}.py: ") and err.count("\n") == 1), err[-600:]
        half = {file: value for file, value in outcome(folder, False).items() if differ({file: value}, {file: results.get(file)})}
        assert not half, f"half of {[*half][:3]} after: {err[-300:]}"
        grow(1 << 30)
        code = ended(start(script, flags, again), again)
        assert code == 0, said(again)[1][-600:]
        assert not (lacks := differ(outcome(folder), results)), lacks
        assert not (more := hidden(folder) - left), f"left over: {sorted(more)[:3]}"


def full_disks(tiny, name, count):
    """Each in a process of its own, which alone sees its small disk."""
    rng, trials = random.Random(f"full {name}"), []
    wanted = uninterrupted(tiny, name)
    for i in range(count):
        size, whole = int(rng.uniform(4096, 1.02 * wanted[3])), i % 2 == 0
        size = size if whole else int(4096 * (wanted[3] / 4096) ** rng.random())
        with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile() as verdict:
            if not (pid := os.fork()):
                told, how = [], f"{name} with {size:,} bytes {'of disk' if whole else 'a file'}"
                attempt(told, how, full, tiny, name, wanted, folder, size, whole)
                Path(verdict.name).write_text(json.dumps(told))
                os._exit(0)
            ended(pid, verdict.name, 3 * HANG)
            trials += json.loads(verdict.read())
    return trials


def test_full_disk(table, pool, given):
    names = [name for name in COMMANDS if name != "toy"]
    futures = [pool.submit(full_disks, given, name, TRIALS) for name in names]
    tried(table, {"scripts on a disk that fills, and run again with room": futures})


# ---- make all, killed as a whole ----------------------------------------------------------------------------------------

STUDY = ["DATA=tiny", "CLIP=toy-RN", "IMAGENET=", "FINETUNE=1", "RATES=5e-4", "TUNE=--epochs 1 --batch 8"]
STUDY += ["SRGAN=--blocks 1 --width 8 --epochs 1 --adversarial 1"]


def make(tiny, jobs, log):
    """A process, and session, of its own that runs `make all` of a small study in the current folder."""
    command = ["make", "-f", ROOT / "Makefile", f"-j{jobs}", "all", f"JOBS={jobs}", f"PYTHON={sys.executable}", *STUDY]
    with open(log, "w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def make_world(tiny, folder):
    """Go into a folder where `make all` finds this repository, and data and weights of its own."""
    os.chdir(folder)
    for name in os.listdir(ROOT):
        if name not in ("data", "weights", "cache", "results", "figures") and not name.startswith("."):
            os.symlink(ROOT / name, name)
    os.mkdir("data")
    os.mkdir("weights")
    os.symlink(tiny / "data" / "tiny", "data/tiny")
    for file in (tiny / "weights").iterdir():
        os.symlink(file, Path("weights", file.name))


def studied(folder):
    """outcome of what `make all` makes; without speeds, and figures and pages of them."""
    found = {}
    for name in ("results", "weights", "data"):
        found |= {f"{name}/{file}": value for file, value in outcome(Path(folder, name)).items()}
    free = ("fingerprint", "made", "source", "files")  # of the enlarged copy they have the times of its files in them
    found = {file: value for file, value in found.items() if not file.endswith((".fingerprint", "speed.json", "upsample.json"))}
    return {
        file: {k: v for k, v in value.items() if not {*free} & {*k.split(".")}} if isinstance(value, dict) and "-srgan/" in file else value
        for file, value in found.items()
    }


# Python's own end of Ctrl-C in the first hundredths of a second, before common.py hears it
IMPORTING = re.compile(r"(_find_and_load.*|\n    (import|from) [^\n]*)\n[ ^~]*\n?KeyboardInterrupt", re.DOTALL)


def make_killed(tiny, jobs, seed, count):
    rng, trials = random.Random(seed), []
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as logs:
        make_world(tiny, folder)
        began = time.time()
        assert make(tiny, jobs, f"{logs}/1").wait() == 0, Path(logs, "1").read_text()[-2000:]
        seconds, wanted, left = time.time() - began, studied(folder), hidden(folder)

    def trial(moment, how):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, tempfile.TemporaryDirectory() as logs:
            make_world(tiny, folder)
            running = make(tiny, jobs, f"{logs}/1")
            time.sleep(moment * seconds)
            os.killpg(running.pid, how)
            running.wait(60)
            until = time.time() + 20
            while (alive := orphans(running.pid)) and time.time() < until:
                time.sleep(0.1)
            said = Path(logs, "1").read_text(errors="replace")
            assert not alive, f"{len(alive)} processes live on"
            faults = [part for part in said.split("Traceback")[1:] if not IMPORTING.search(part)]
            assert not faults, faults[0][:1500]
            code, told = make(tiny, jobs, f"{logs}/2").wait(20 * seconds), Path(logs, "2").read_text(errors="replace")
            wrong = re.findall(r".*(?:py: |Error|\*\*\*).*", told)
            assert code == 0, f"made again: {wrong[:20]} {told[-600:]}"
            assert not (lacks := differ(studied(folder), wanted)), lacks
            assert not (more := hidden(folder) - left), f"left over: {sorted(more)[:3]}"

    for _ in range(count):
        moment, how = rng.random(), rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        attempt(trials, f"make -j{jobs} by {how.name} at {moment:.3f} of {seconds:.0f} s", trial, moment, how)
    return trials


def test_make_killed(table, pool, given):
    futures = {jobs: [pool.submit(make_killed, given, jobs, jobs, MAKES)] for jobs in (1, 2)}
    tried(table, {f"`make -j{jobs} all` killed with all it has started, and made again": parts for jobs, parts in futures.items()})


# ---- damaged pictures ---------------------------------------------------------------------------------------------------

ENDINGS = ".jpg .png .bmp .webp .gif .tif .jp2 .j2k .ppm .pgm .pbm .pfm .tga .pcx .dds .ico .icns .im .sgi .qoi .avif .eps .xbm .msp .blp"
TURNED = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0"  # by 90 degrees


@cache
def pictures(ending):
    """Files of this format as Pillow writes it, in several modes and sizes."""
    Image.init()
    rng, files = np.random.default_rng(0), []
    for mode in ("RGB", "L", "RGBA", "P", "1", "I;16", "F", "CMYK"):
        for side in (32, 48):
            image = Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8))
            image = image.convert("L").convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
            for more in ({}, {"compression": "tiff_lzw"}, {"progressive": True, "exif": TURNED}):
                file = io.BytesIO()
                with contextlib.suppress(Exception):  # a mode that this format has not
                    image.save(file, Image.EXTENSION[ending], **(more if ending in (".tif", ".jpg") else {}))
                    files.append(file.getvalue())
    return sorted({*files})


def mutated(rng, data, others=()):
    """Bytes after one to three accidents, or as somebody who means harm would write them."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 3])):
        place, kind = rng.randrange(len(data) + 1), rng.randrange(9)
        head = rng.randrange(min(len(data), 96) + 1)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place : place + 8] = rng.randbytes(rng.randrange(9))
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            data[place : place + rng.randrange(200)] = b""
        elif kind == 4:
            data[place : place + 64] = bytes(min(64, len(data) - place))
        elif kind == 5 and others:
            data[: head + 1] = rng.choice(others)[: head + 1]
        elif kind in (6, 7):  # a header that claims to be huge
            huge = rng.choice([2**31 - 1, 2**32 - 1, 2**16, 100_000, 12_000, 65_535, 2**24])
            data[head : head + 4] = struct.pack(rng.choice("<>") + "I", huge)
        elif kind == 8 and data[:4] == b"\x89PNG":
            data[16:24] = struct.pack(">II", rng.choice([1, 12_000, 100_000, 2**31 - 1]), rng.choice([1, 12_000, 2**31 - 1]))
            data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def read_pictures(ending, count):
    """Mutated pictures through read_rgb: an 8-bit RGB picture, or ValueError, and within what the memory may be asked for."""
    rng, trials, files = random.Random(ending), [], pictures(ending)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        file, most = Path(f"x{ending}"), common._AT_ONCE * 4 * 4

        def trial(data):
            file.write_bytes(data)
            with at_most(60), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with contextlib.suppress(ValueError):
                    picture = common.read_rgb(file)
                    assert picture.mode == "RGB" and min(picture.size) > 0
                    common._fit(picture, common.View(32))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            assert peak < most, f"{peak / 1e9:.1f} GB of memory"
            assert os.listdir() == [file.name], "wrote another file"

        for i in range(count):
            attempt(trials, f"{ending} {i}", trial, mutated(rng, rng.choice(files), FILES))
    return trials


FILES = [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n", b"GIF89a", b"\xff\xd8\xff\xe0", b"II*\0", b"MM\0*"]
FILES += [
    b"\x89PNG\r\n\x1a\n",
    b"P6\n99999 99999\n255\n",
    b"P5 100000 100000 65535 ",
    b"RIFF\xff\xff\xff\xffWEBP",
    b"BM",
    b"8BPS",
    b"SIMPLE",
]


def test_pictures(table, pool):
    endings = ENDINGS.split()
    tried(table, {f"pictures of {len(endings)} endings with changed bytes": [pool.submit(read_pictures, e, 160) for e in endings]})


def broken_sets(tiny, seed, count):
    """Data sets in which pictures are broken: what cannot be read is skipped by name, and all else counts."""
    rng, trials, endings = random.Random(seed), [], ENDINGS.split()

    def trial():
        with tempfile.TemporaryDirectory() as folder:
            enter(tiny, folder)
            shutil.copytree("data/tiny", "own")
            bad = []
            for _ in range(8):
                place, ending = rng.choice(sorted(Path("own").glob("T*/*/"))), rng.choice(endings)
                file = place / f"{len(bad)}{ending}"
                file.write_bytes(mutated(rng, rng.choice(pictures(ending)), FILES))
                bad += [file] if common._is_image(file.name) else []
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for _ in range(2):  # as it is decoded, and as the cache has it
                    code, out, err = call("zero_shot", "--data", "./own", "--model", "toy-RN", "--out", "r.json")
                    assert code == 0 and not err, err
                skipped = []
                for file in bad:
                    try:
                        common._read_image(file, 32)
                    except ValueError:
                        skipped += [file] if "/Test/" in str(file) else []
            for file in skipped:
                assert f"note: skipped {file}: " in out, out
            good = len(list(Path("own/Test").rglob("*.jpg"))) - len([f for f in bad if f.suffix == ".jpg" and "/Test/" in str(f)])
            tests = [f for f in bad if "/Test/" in str(f)]
            assert json.loads(Path("r.json").read_text())["data"]["counts"]["test"] == good + len(tests) - len(skipped)

    for i in range(count):
        attempt(trials, f"set {i}", trial)
    return trials


def test_broken_sets(table, pool, given):
    futures = [pool.submit(broken_sets, given, seed, 10) for seed in (0, 1)]
    tried(table, {"data sets in which 8 pictures have changed bytes": futures})


# ---- damaged files of our own -------------------------------------------------------------------------------------------

WEIGHTS = "--weights weights/toy-RN.pt"
READERS = {  # what reads a file, which with {} is a copy of it, and the trials a file
    "weights of an encoder": ("zero_shot --data tiny --model toy-RN --weights {} --out r.json", "weights/toy-RN.pt", 40),
    "heads to predict with": (f"linear_probe --load {{}} --predict data/tiny/Test --csv p.csv {WEIGHTS}", "given/h.safetensors", 80),
    "heads to start from": ("finetune --data tiny --model toy-RN --head {} --epochs 1 --batch 8 --out r.json", "given/h.safetensors", 20),
    "networks to predict with": ("finetune --load {} --predict data/tiny/Test --csv p.csv", "given/n.safetensors", 40),
    "generators": ("upsample eval --data tiny --weights {} --out r.json", "given/g.safetensors", 60),
}


def read_damaged(tiny, what, count):
    """Damaged copies of a file: refused by its name, or the same numbers."""
    (command, file, _), rng, trials = READERS[what], random.Random(what), []
    with tempfile.TemporaryDirectory() as folder:
        enter(tiny, folder)
        copy, good = f"copy{Path(file).suffix}", Path(file).read_bytes()
        script, *flags = command.format(copy).split()

        def run():
            for left in ("r.json", "r.npz", "p.csv"):
                Path(left).unlink(missing_ok=True)
            code, out, err = call(script, *flags)
            refused_well(script, code, err)
            assert code == 0 or copy in err, err
            return code, {k: v for k, v in outcome(folder).items() if not k.startswith("copy")}

        def trial(data):
            Path(copy).write_bytes(data)
            code, found = run()
            assert code == 0 or not found, f"left {[*found]}"
            assert code == 2 or not (how := differ(found, wanted)), f"other numbers: {how}"

        Path(copy).write_bytes(good)
        code, wanted = run()
        assert code == 0
        for i in range(count):
            attempt(trials, f"{what} {i}", trial, mutated(rng, good) if i % 3 else flipped(rng, good))
    return trials


def flipped(rng, data):
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def damaged_checkpoints(tiny, count):
    """A run that was killed between two legs, and its checkpoint then damaged: refused by its name, or the same end."""
    (script, *flags), rng, trials = COMMANDS["finetune"].split(), random.Random(0), []
    wanted, _, seconds, _ = uninterrupted(tiny, "finetune")
    with tempfile.TemporaryDirectory() as folder:
        enter(tiny, folder)
        pid, checkpoint, until = start(script, flags, f"{folder}/log"), Path("r.0.ckpt"), time.time() + HANG
        while not checkpoint.exists() and time.time() < until:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        ended(pid, f"{folder}/log")
        good = checkpoint.read_bytes()
        for file in Path().glob("log.*"):
            file.unlink()

        def trial(data):
            checkpoint.write_bytes(data)
            code, out, err = call(script, *flags)
            refused_well(script, code, err)
            assert code == 0 or (checkpoint.name in err and checkpoint.read_bytes() == data), err
            found = outcome(folder, False)
            assert not (lacks := differ(found, wanted if code == 0 else {})), lacks
            for file in found:
                Path(file).unlink()

        for i in range(count):
            attempt(trials, f"checkpoint {i}", trial, mutated(rng, good) if i % 3 else flipped(rng, good))
    return trials


def damage_some(trials, rng, files, count, trial):
    """trial(file, damaged bytes) of one of the files, `count` times."""
    for i in range(count):
        file = rng.choice(files)
        good = file.read_bytes()
        attempt(trials, f"{file} {i}", trial, file, mutated(rng, good) if i % 3 else flipped(rng, good))


def damaged_caches(tiny, count):
    """Each file of the cache, damaged: made anew with a note, and the same numbers."""
    rng, trials = random.Random(1), []
    with tempfile.TemporaryDirectory() as folder:
        enter(tiny, folder)
        script, *flags = f"zero_shot {DATA}".split()  # without --grid, whose drawing takes half of the time
        code, first, _ = call(script, *flags)
        files = sorted(f for f in Path("cache").rglob("*") if f.is_file() and not f.name.startswith("."))

        def trial(file, data):
            good = file.read_bytes()
            file.write_bytes(data)
            code, out, err = call(script, *flags)
            told = [line for line in out.splitlines() if line.startswith("note: cache/") and " is damaged (" in line]
            assert code == 0 and not err and len(told) == (data != good and file.read_bytes() != data), f"{code} {out[:200]} {err[:300]}"
            assert "\n".join(line for line in out.splitlines() if line not in told) == first.rstrip(), out
            file.write_bytes(good)

        damage_some(trials, rng, files, count, trial)
    return trials


def damaged_results(tiny, count):
    """Each record and its arrays, damaged: plot.py refuses it by its name, or says the same."""
    rng, trials = random.Random(2), []
    with tempfile.TemporaryDirectory() as folder:
        enter(tiny, folder)
        shutil.copytree("given/results", "results")
        code, first, _ = call("plot", "--data", "tiny", "--table")
        assert code in (0, 1) and "toy-RN" in first  # some of a study is missing
        files = sorted(f for f in Path("results").rglob("*") if f.is_file())

        def trial(file, data):
            good = file.read_bytes()
            file.write_bytes(data)
            try:
                code, out, err = call("plot", "--data", "tiny", "--table")
                refused_well("plot", code, err)
                assert code != 2 or file.stem in err, err
                assert code == 2 or out == first, out[:300]
            finally:
                file.write_bytes(good)

        damage_some(trials, rng, files, count, trial)
    return trials


class Evil:
    """What runs a command where somebody unpickles it."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def evil_files(folder):
    """{name: bytes} of pickles that run a command, packed as every kind of file that these scripts read."""
    evil, good = Evil(f"touch {folder}/RUN"), torch.zeros(2)
    kinds = {"pickle": pickle.dumps(evil), "state": pickle.dumps({"state_dict": {"x": evil}})}
    for zipped in (True, False):
        for name, value in {"alone": evil, "in": {"x": good, "y": evil}, "about": {"about": evil, "state": {"x": good}}}.items():
            file = io.BytesIO()
            torch.save(value, file, _use_new_zipfile_serialization=zipped)
            kinds[f"{name} {zipped}"] = file.getvalue()
    file = io.BytesIO()
    np.save(file, np.array([evil], object), allow_pickle=True)
    kinds["npy"] = file.getvalue()
    file = io.BytesIO()
    np.savez(file, x=np.array([evil], object), index=np.array([evil], object))
    kinds["npz"] = file.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # as TorchScript is packed
        archive.writestr("x/constants.pkl", pickle.dumps(evil))
        archive.writestr("x/data.pkl", pickle.dumps(evil))
        archive.writestr("x/version", "3")
    kinds["script"] = file.getvalue()
    return kinds


def evil_everywhere(tiny):
    trials = []
    with tempfile.TemporaryDirectory() as folder:
        enter(tiny, folder)
        shutil.copytree("given/results", "results")
        assert call(*f"zero_shot {DATA}".split())[0] == 0
        results = [f for f in Path("results").rglob("*") if f.is_file()]
        caches = [f for f in Path("cache").rglob("*") if f.is_file() and not f.name.startswith(".")]
        places = [(command.format(f"copy{end}"), Path(f"copy{end}")) for command, *_ in READERS.values() for end in (".pt", ".safetensors")]
        places += [(COMMANDS["finetune"], Path("r.0.ckpt")), (COMMANDS["upsample train"], Path("g.pixel.ckpt"))]
        places += [("upsample eval --data tiny --dialect pytorch-gan --weights copy.pth", Path("copy.pth"))]
        places += [("upsample apply --data tiny --size 64 --to x --weights copy.pth", Path("copy.pth"))]
        places += [("plot --data tiny --table", file) for file in results] + [(f"zero_shot {DATA}", file) for file in caches]
        places += [(f"zero_shot {DATA} {flag} copy.json", Path("copy.json")) for flag in ("--prompts", "--classnames", "--groups")]
        places += [(f"zero_shot --model toy-RN --data copy{end}", Path(f"copy{end}")) for end in (".csv", ".zip", ".tar")]

        def trial(command, file, data):
            good = file.exists() and file.read_bytes()
            file.write_bytes(data)
            try:
                script, *flags = command.split()
                code, out, err = call(script, *flags)
                refused_well(script, code, err)
                assert code == 2 or "is damaged (" in out, out
                assert not Path("RUN").exists(), "it was run"
            finally:
                Path("RUN").unlink(missing_ok=True)
                file.write_bytes(good) if good else file.unlink(missing_ok=True)

        for kind, data in evil_files(folder).items():
            for command, file in places:
                attempt(trials, f"{kind} as {file} of {command}", trial, command, file, data)
    return trials


def test_damaged_files(table, pool, given):
    futures = {f"{what}, damaged": [pool.submit(read_damaged, given, what, reader[2])] for what, reader in READERS.items()}
    futures["checkpoints of training, damaged"] = [pool.submit(damaged_checkpoints, given, 40)]
    futures["files of the cache, damaged"] = [pool.submit(damaged_caches, given, 150)]
    futures["records and their arrays, damaged, read by `plot.py`"] = [pool.submit(damaged_results, given, 120)]
    futures["pickles that would run a command, as every file that is read"] = [pool.submit(evil_everywhere, given)]
    tried(table, futures)


# ---- odd command lines and odd folders, as hypothesis thinks of them ----------------------------------------------------

BASES = {
    "zero_shot": DATA,
    "few_shot": f"{DATA} --seeds 1 --shots 1",
    "linear_probe": DATA,
    "finetune": f"{DATA} --epochs 1 --batch 16",
    "prompts": f"{DATA} --templates t.txt",
    "upsample train": "--data tiny --blocks 1 --width 4 --epochs 1 --adversarial 0 --save g.safetensors",
    "upsample apply": "--data tiny --weights given/g.safetensors --size 40 --to large",
    "upsample eval": "--data tiny --weights given/g.safetensors",
    "plot": "--data tiny --results given/results",
}
VALUES = ["", " ", "x", "0", "1", "2", "-1", "nan", "inf", "1e-3", "0.5", "1e400", "1" * 30, "\udce9", "a\nb", "\x1b[31m", "n" * 300, "."]
VALUES += ["..", "tiny", "data/tiny", "data/tiny/Test", "weights/toy-RN.pt", "weights/toy-ViT.pt", "toy-RN", "toy-imagenet", "toy-ViT"]
VALUES += ["r.json", "x.csv", "x.safetensors", "x.png", "no/x.json", "t.txt", "file", "folder", "folder/x.json", "file/x.csv", "loop"]
VALUES += ["given/h.safetensors", "given/n.safetensors", "given/g.safetensors", "given/results", "(", "(.+)", "([a-z])", "(?P<a>x)|", "{}"]
VALUES += ["a {}", "{type} {}", "fruit", "cpu", "meta", "text", "random", "cs", "pad", "squash", "val", "train", "float32", "bf16", "gelu"]
VALUES += ["/dev/null", "$(touch RUN)"]

USUAL = {
    "--data": ["tiny", "data/tiny", "./data/tiny/Test", "x.zip"], "--model": ["toy-RN", "toy-imagenet", "toy_rn"],
    "--weights": ["weights/toy-RN.pt"], "--prompts": ["a {}", "t.txt"], "--type": ["", "fruit"], "--classnames": ["c.json"],
    "--label-from": ["(.+)[.]"], "--groups": ["(.)[.]jpg", "."], "--fit": ["crop", "pad", "squash"], "--seed": ["0", "7"],
    "--device": ["cpu"], "--precision": ["float32", "bf16"], "--batch": ["1", "5", "16"], "--out": ["r.json", "no/r.json"],
    "--grid": ["g.png"], "--split": ["train", "test"], "--alpha": ["0.2"], "--reject": ["0.3"], "--shots": ["1", "2"], "--seeds": ["2"],
    "--features": ["penultimate", "projected"], "--save": ["x.safetensors"], "--suspects": ["s.csv"], "--csv": ["p.csv"],
    "--load": ["given/h.safetensors", "given/n.safetensors"], "--predict": ["data/tiny/Test"], "--images": ["data/tiny/Test"],
    "--labels": ["a", "\x1b"], "--method": ["ml", "cs"], "--head": ["text", "random", "given/h.safetensors"], "--epochs": ["1", "2"],
    "--lr": ["1e-3", "0.5"], "--size": ["33", "64"], "--to": ["large", "p"], "--generator": ["pixel", "srgan"], "--templates": ["t.txt"],
    "--readme": ["page.md"], "--margin": ["0.05"], "--results": ["given/results", "."], "--expect": ["x.json"],
    "--adversarial": ["0", "1"], "--width": ["3"], "--blocks": ["1"],
}  # fmt: skip


def examples(count, *strategies):
    """A decorator that calls a function with so many examples, the same each time."""
    everything = list(hypothesis.HealthCheck)
    how = dict(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=everything)
    return lambda function: hypothesis.settings(**how)(hypothesis.given(*strategies)(function))()


def odd_commands(tiny, name, count):
    """Random flags with random values behind a command that would do: a result, or a line before which nothing was written by halves."""
    script, *task = name.split()
    trials = []
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer, "here")
        folder.mkdir()
        enter(tiny, folder)
        Path("folder").mkdir()
        Path("file").write_text("no")
        Path("t.txt").write_text("a {}\nthe {}\n")
        Path("c.json").write_text(json.dumps({"red apple": "an odd \x1b one"}))
        shutil.make_archive("x", "zip", "data/tiny")
        Path("loop").symlink_to("loop")
        kept = {*os.listdir(), "cache"}
        usage = call(script, *task, "--help")[1]
        flags = sorted({*re.findall("--[a-z-]+", usage)} - {"--help"})
        alone = {*re.findall(r"\[(--[a-z-]+)\]", usage)}
        letters = st.characters(blacklist_characters="\0/", blacklist_categories=["Cs"])
        odd = st.one_of(st.sampled_from(VALUES), st.text(letters, max_size=6))

        @st.composite
        def flag_and_values(draw):
            flag = draw(st.sampled_from(flags))
            usual = st.just([]) if flag in alone else st.sampled_from([[value] for value in USUAL.get(flag, "x")])
            return flag, draw(st.one_of(usual, usual, st.lists(odd, min_size=flag not in alone, max_size=1 + draw(st.integers(0, 1)))))

        def trial(more):
            code, _, err = call(script, *task, *BASES[name].split(), *(text for flag, values in more for text in (flag, *values)))
            refused_well(script, code, err)
            outcome(folder)  # whole files
            assert not any(file.startswith(common._MINE) for file in hidden(folder)), hidden(folder)
            assert os.listdir(outer) == ["here"] and not Path("RUN").exists()

        @examples(count, st.lists(flag_and_values(), min_size=1, max_size=4))
        def each(more):
            attempt(trials, f"{name} {more}", trial, more)
            for file in {*os.listdir()} - kept:
                shutil.rmtree(file) if os.path.isdir(file) and not os.path.islink(file) else os.unlink(file)

    return trials


def test_odd_commands(table, pool, given):
    futures = [pool.submit(odd_commands, given, name, 80) for name in BASES]
    tried(table, {"command lines with odd flags and values": futures})


NAMES = ["red", "Apfel mus", "caf\udce9", "two\nlines", "\x1b[31m", ".hidden", "train", "Test", "valid", "a" * 200, "9", "10", "1.jpg"]
NAMES += [
    "-x",
    "*",
    "\u65e5\u672c",
    "\u202ex",
    "__MACOSX",
    " first",
    "last ",
    "'",
    '"',
    "a,b",
    "a;b",
    "upsample.json",
    "classnames.json",
    "$x",
]
PLAIN = [n for n in NAMES if n.strip(" .") == n and n not in ("train", "Test", "valid", "__MACOSX") and not n.endswith(".json")]
LEAVES = ["picture", "picture", "picture", "broken", "empty", "text", "loop", "up", "gone", "pipe", "sealed"]


def picture(colour):
    file = io.BytesIO()
    Image.new("RGB", (24, 24), (colour * 40 % 256, colour * 90 % 256, colour)).save(file, "PNG")
    return file.getvalue()


def plant(place, tree):
    """Make a folder of {name: folder, or a word of LEAVES}."""
    os.mkdir(place)
    for i, (name, inner) in enumerate(tree.items()):
        path = os.path.join(place, name)
        if isinstance(inner, dict):
            plant(path, inner)
            continue
        path += "" if inner in ("up", "text") or name.endswith(".json") else ".png"
        if os.path.lexists(path):
            continue
        if inner in ("loop", "up", "gone"):
            os.symlink({"loop": path, "up": "..", "gone": "nowhere"}[inner], path)
        elif inner == "pipe":
            os.mkfifo(path)
        else:
            with open(path, "wb") as file:
                file.write({"empty": b"", "text": b"[1]", "broken": picture(i)[:60]}.get(inner, picture(i)))
            os.chmod(path, 0 if inner == "sealed" and os.getuid() else 0o644)


def seen_of(name):
    """({split: {(path, class)}}, number of classes) as load_data and its pixels have it."""
    data = common.load_data(name, union=True)
    images = data.images(24, [split for split in data.splits if data.splits[split]])
    found = {split: {(path, data.classes[label]) for path, label in zip(i.paths, i.labels.tolist())} for split, i in images.items()}
    return found, len(data.classes)


def odd_folders(count):
    """Folders of any shape: pictures, or a line."""
    trials = []
    inner = st.recursive(st.sampled_from(LEAVES), lambda t: st.dictionaries(st.sampled_from(NAMES), t, max_size=4), max_leaves=16)
    tree = st.dictionaries(st.sampled_from(NAMES), inner, max_size=5)

    def trial(tree):
        with tempfile.TemporaryDirectory() as outer:
            folder = os.path.join(outer, "here")
            os.mkdir(folder)
            os.chdir(folder)
            plant("own", tree)
            sys.argv = ["some.py"]
            code, out, err = heard(lambda: seen_of("./own") and 0)
            refused_well("some", code, err)
            assert not re.search(r"[\0-\x08\x0b-\x1f]", common._plain(out, keep="\n")) and os.listdir(outer) == ["here"]

    @examples(count, tree)
    def each(tree):
        attempt(trials, str(tree)[:300], trial, tree)
        os.chdir("/")

    return trials


def plain_sets(count):
    """Plain trees, in a folder, an archive and a table: the classes and labels that whoever reads the tree sees."""
    trials = []
    split = st.dictionaries(st.sampled_from(PLAIN), st.integers(2, 4), min_size=2, max_size=4)

    def trial(classes, splits):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            os.mkdir("own")
            for s in splits:
                plant(f"own/{s}", {c: dict.fromkeys(map(str, range(n)), "picture") for c, n in classes.items()})
            wanted = {s: {(f"{s}/{c}/{i}.png", c) for c, n in classes.items() for i in range(n)} for s in splits}
            rows = [(path, c, s) for s in splits for path, c in sorted(wanted[s])]
            names = ["./own"]
            if all(c == c.encode("utf-8", "ignore").decode() for c in classes):
                names += ["own.zip", "own.tar"]
                with zipfile.ZipFile("own.zip", "w") as archive, tarfile.open("own.tar", "w") as tape:
                    for path, *_ in rows:
                        archive.write(f"own/{path}", path)
                        tape.add(f"own/{path}", path)
                    for evil in ("../evil.png", "/tmp/evil.png"):
                        archive.writestr(evil, picture(0))
                if not any(set(c) & {";", "|", ","} for c in classes):
                    names += ["own/own.csv"]
                    with open("own/own.csv", "w", encoding="utf-8", newline="") as file:
                        csv.writer(file).writerows([("path", "label", "split"), *rows])
            for name in names:
                told = []
                sys.argv = ["some.py"]
                code, out, err = heard(lambda: told.append(seen_of(name)))  # noqa: B023
                assert code == 0 and not err, f"{name}: {err}"
                found, number = told[0]
                assert number == len(classes) and {*found} == {*splits} | {"test"}, name
                together = {row for rows in found.values() for row in rows}
                assert together == {row for rows in wanted.values() for row in rows}, name
                if "test" in splits:
                    assert found == wanted, name

    @examples(count, split, st.sampled_from([("train",), ("train", "test"), ("train", "val", "test"), ("train", "val")]))
    def each(classes, splits):
        attempt(trials, f"{classes} {splits}", trial, classes, splits)
        os.chdir("/")

    return trials


def test_odd_folders(table, pool):
    futures = {"folders of odd shapes and names": [pool.submit(odd_folders, 400)]}
    futures["plain trees, in folders, archives and tables, with the labels of another reading"] = [pool.submit(plain_sets, 100)]
    tried(table, futures)
