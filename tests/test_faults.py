"""Faults: readers that go away, full disks, kills, twins and odd names lose nothing and end in a line."""

import io
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from conftest import ROOT, refused
from PIL import EpsImagePlugin, Image

import common
import finetune
import linear_probe
import zero_shot
from common import atomic, load_model, lock, read_result, read_rgb, read_weights, save_weights

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
    Image.new("RGB", (40, 40)).save(folder / "2.png", exif=b"Exif\0\0II*\0\x08\0\0\0\5\0")  # cut off, of which Pillow warns
    done = subprocess.run([*ZERO_SHOT, "--data", "./own"], capture_output=True)
    assert done.returncode == 0 and not done.stderr and b"\x1b" not in done.stdout and b"\\x1b" in done.stdout
    with pytest.raises(SystemExit):
        common.fail("a\x1b[31m\nb")
    assert capsys.readouterr().err.partition(": ")[2] == "a\\x1b[31m\\nb\n"


@pytest.mark.parametrize(
    "script, last, flags",
    [(zero_shot, "draw_grid", ["--grid", "g.png"]), (linear_probe, "search_suspects", ["--save", "h.safetensors", "--suspects", "s.csv"])],
    ids=["zero_shot", "linear_probe"],
)
def test_the_record_comes_last(script, last, flags, world, call, monkeypatch):
    """A kill before it leaves no record, by which make would take all else to be there."""
    command = ["--data", "tiny", "--model", "toy-RN", *flags, "--out", "r.json"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(script, last, Mock(side_effect=KeyboardInterrupt))
        call(script.main, *command)
    assert not Path("r.json").exists()
    assert call(script.main, *command)[0] == 0 and all(Path(file).exists() for file in (*flags[1::2], "r.json"))


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


def test_twins_make_what_they_share_once(tmp_path):
    fork, made, file = multiprocessing.get_context("fork"), tmp_path / "made", tmp_path / "x.json"

    def make():
        time.sleep(0.2)
        with open(made, "a") as log:
            log.write("x")
        common._keep_json(file, 7)

    twins = [fork.Process(target=common._kept_or_made, args=(file, common._kept_json, make)) for _ in range(4)]
    for twin in twins:
        twin.start()
    for twin in twins:
        twin.join()
        assert twin.exitcode == 0
    assert made.read_text() == "x" and {p.name for p in tmp_path.iterdir()} == {"made", "x.json"}


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


def test_too_little_memory_is_a_line_wherever_it_is_missed(tmp_path):
    """As in a step of training; what encodes pictures goes on with half of them."""
    program = "import common, torch\ntorch.empty(1 << 60)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=path())
    assert done.returncode == 1 and done.stderr.count("\n") == 2 and "not enough memory" in done.stderr and "--batch" in done.stderr


def test_ctrl_c_where_nothing_can_be_raised_comes_once_more():
    class Cleans:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    hook, sys.unraisablehook = sys.unraisablehook, common._unheard
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            Cleans()
            time.sleep(1)
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, heard)


def test_ctrl_c_while_something_is_imported_is_the_end(tmp_path):
    """However that takes it: torch goes on without numpy, of which half is there."""
    (tmp_path / "deaf.py").write_text(
        "import time\nprint('reads', flush=True)\ntry:\n    time.sleep(60)\nexcept BaseException:\n    print('goes on')\n"
    )
    command = [sys.executable, "-c", "import common, deaf"]
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout.readline() == "reads\n"
        running.send_signal(signal.SIGINT)
        out, err = running.communicate()
    assert (running.returncode, out) == (-signal.SIGINT, "") and err.strip() == "-c: interrupted; run it again to go on from what is kept"


def test_ctrl_c_is_not_taken_for_a_damaged_file(tmp_path):
    """safetensors makes a ValueError of it, now and then."""
    save_weights(tmp_path / "w.safetensors", {"head.weight": torch.ones(9, 9), "head.bias": torch.ones(9)}, {})
    program = (
        "import random, signal, time, common\n"
        "heard = 0\n"
        "signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))\n"
        "common.read_weights('w.safetensors')\n"
        "for _ in range(1000):\n"
        "    try:\n"
        "        signal.setitimer(signal.ITIMER_REAL, 1e-6 + 5e-4 * random.random())\n"
        "        common.read_weights('w.safetensors')\n"
        "        time.sleep(1)\n"
        "    except KeyboardInterrupt:\n"
        "        heard += 1\n"
        "print(heard)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"1000\n"), done.stderr


def test_ctrl_c_that_something_has_wrapped_is_a_line():
    program = "import common\ntry: raise KeyboardInterrupt\nexcept KeyboardInterrupt as error: raise RuntimeError('x') from error"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=path())
    assert done.returncode == -signal.SIGINT and done.stderr == "\n-c: interrupted; run it again to go on from what is kept\n"


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


# ---- damaged pictures, and pictures too large for the memory ------------------------------------------------------


def odd_jp2(place):
    """A JPEG 2000 file with one byte of its boxes changed."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)).save(file, "JPEG2000")
    return file.getvalue()[:place] + b"\1" + file.getvalue()[place + 1 :]


@pytest.mark.parametrize(("place", "raised"), [(15, OSError), (35, MemoryError)])
def test_a_broken_picture_does_not_stop_the_data_set(world, call, place, raised):
    shutil.copytree(world / "data" / "tiny", "own")
    bad = sorted(Path("own").glob("[Tt]est/*/"))[0] / "x.jp2"
    bad.write_bytes(odd_jp2(place))
    with pytest.raises(raised), Image.open(bad) as image:
        image.load()
    for _ in range(2):
        code, out, err = call(zero_shot.main, "--data", "./own", "--model", "toy-RN")
        assert code == 0 and not err and f"note: skipped {bad}" in out


def test_good_pictures_do_not_depend_on_broken_ones(tmp_path, monkeypatch):
    """Nor on sizes in their headers: small square pictures stay as they are, at most as large as most."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for c in "ab":
        for i in range(3):
            file = Path(f"d/train/{c}/{i}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(file)
    shutil.copytree("d/train", "d/test")
    shutil.copytree("d", "e")
    for name, size in (("0", (90, 70)), ("0b", (40, 40)), ("x", (300, 300))):
        noise = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(noise, "PNG")
        Path(f"e/train/a/{name}x.png").write_bytes(noise.getvalue()[:2000])
    Path("e/train/b/none.png").write_bytes(b"")
    plain, beside = (common._load_images(common.load_data(name), "train", 64) for name in ("./d", "./e"))
    assert len(beside.skipped) == 4 and beside.pixels.shape[1:] == (40, 40, 3) and np.array_equal(plain[:], beside[:])


def test_other_bytes_behind_the_same_size_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in (1, 2):
        Path("d/train/a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (i, i, i)).save(f"d/train/a/{i}.bmp")
        os.utime(f"d/train/a/{i}.bmp", ns=(1, 1))
    shutil.copytree("d/train", "d/test")
    Path("t.csv").write_text("path,label,split\nd/train/a/1.bmp,a,train\nd/train/a/2.bmp,a,train\nd/test/a/2.bmp,a,test\n")
    for name in ("./d", "t.csv"):
        shutil.copy2("d/train/a/2.bmp", "kept")
        first = common._load_images(common.load_data(name), "train", 40)
        shutil.copy2("d/train/a/1.bmp", "d/train/a/2.bmp")
        second = common._load_images(common.load_data(name), "train", 40)
        assert first.pixels[1].mean() == 2 and second.pixels[1].mean() == 1 and first.key != second.key
        shutil.copy2("kept", "d/train/a/2.bmp")
        assert common._load_images(common.load_data(name), "train", 40).key == first.key


def test_postscript_is_not_run(tmp_path, monkeypatch):
    """It is a program, which Pillow would give to Ghostscript, whatever the file is called."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/run\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name in ("x.eps", "x.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, "EPS")
        with pytest.raises(ValueError):
            read_rgb(tmp_path / name)
    assert not (tmp_path / "run").exists() and not common._is_image("x.eps") and common._is_image("x.jpg")


def test_the_disk_is_not_the_picture(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("nowhere")
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name in ("folder", "link|nowhere", "loop"):  # older Pillow names what the link leads to
        with pytest.raises(OSError, match=name):
            read_rgb(tmp_path / f"{name.partition('|')[0]}.png")
    with pytest.raises(ValueError, match="cannot identify"):
        read_rgb("x", lambda path: Image.open(io.BytesIO(b"no picture")))


def test_a_machine_without_memory_is_not_the_picture(tmp_path):
    """The same picture, where the process may take what it wants and where it may not have 1 GB more: only then it may be a healthy one."""
    (tmp_path / "x.jp2").write_bytes(odd_jp2(35))
    limit = "resource.setrlimit(resource.RLIMIT_AS, (common._AT_ONCE * 2 + int(open('/proc/self/statm').read().split()[0]) * 4096,) * 2)"
    for before, error in (("", "ValueError"), (limit, "MemoryError")):
        program = f"import common, resource\ncommon._formats()\n{before}\ntry: common.read_rgb('x.jp2')\nexcept {error}: print('so it is')"
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, env=path())
        assert done.stdout == "so it is\n", done.stderr


def test_pixels_in_flight_are_limited(monkeypatch):
    monkeypatch.setattr(common, "_AT_ONCE", 3 * 40 * 40)
    seen = []

    def then(image, _):
        held.append(image.width * image.height)
        seen.append(sum(held))
        time.sleep(0.02)
        held.remove(image.width * image.height)

    held, sizes = [], [40] * 10 + [100, 20]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda side: read_rgb("", lambda _: Image.new("RGB", (side, side)), then), sizes))
    assert len(seen) == 12 and sorted(seen)[-1] == 100 * 100 and 40 * 40 < sorted(seen)[-2] <= 3 * 40 * 40
    assert common._FLYING == [0]


@pytest.fixture
def at_once(monkeypatch):
    if sys.platform != "linux":
        pytest.skip("threads are all there is")
    monkeypatch.setattr(common, "_ALONE", 0.0)


def test_processes_read_as_threads_do(at_once, tmp_path):
    """Pictures of several sizes, of which some are broken or gone: the same pixels, and what is wrong is said alike."""
    rng = np.random.default_rng(0)
    for i in range(150):
        side = 20 + i % 3
        file = tmp_path / f"many/test/{i % 5}/{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(file)
        if i % 40 == 7:
            file.write_bytes(file.read_bytes()[: 100 + i])
    data = common.load_data(str(tmp_path / "many"), union=True)
    files, made = data.files("test"), []
    for kind in ("folder", "read by threads"):
        data.kind = kind
        places = [tmp_path / f"{kind}{end}" for end in (".npy", "-small.npy", ".json")]
        common._decode(data, files, common.View(16), *places, "test", False)
        made.append([common.image_sizes(data, files), *(place.read_bytes() for place in places)])
    assert made[0] == made[1] and len(json.loads(made[0][3])[0][0]) == 4


@pytest.mark.parametrize(
    "waits, seconds, count, least, most", [(True, 1e-2, 200, 5, 32), (False, 1e-2, 200, 2, 8), (False, 1e-5, 1000, 1, 1)]
)
def test_as_many_processes_as_pay(at_once, monkeypatch, waits, seconds, count, least, most):
    """Of 200 works of 10 ms many more than the four cores, where they wait; of a thousand of .01 ms all would be later than without."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4))
    monkeypatch.setattr(common, "_ALONE", 0.01)  # of a single one so short, a busy machine would tell nothing

    def work(i):
        until = time.perf_counter() + seconds
        if waits:
            time.sleep(seconds)
        while time.perf_counter() < until:
            pass
        return i, os.getpid()

    forked, threads = (list(common._spread(work, range(count), fork)) for fork in (True, False))
    assert [i for i, _ in forked] == [i for i, _ in threads] == list(range(count))
    assert least <= len({pid for _, pid in forked[1:]}) <= most and {pid for _, pid in threads} == {forked[0][1]} == {os.getpid()}


@pytest.mark.parametrize("accident", ["killed", "wrong"])
def test_a_process_that_dies_ends_all_with_a_line(at_once, accident, capfd):
    def work(i):
        if i == 70:
            os.kill(os.getpid(), signal.SIGKILL) if accident == "killed" else [][1]
        return i

    with pytest.raises(SystemExit) as end:
        list(common._by_processes(work, range(200), 4))
    said = capfd.readouterr().err
    assert end.value.code == 2 and "a process that read pictures has ended" in said
    assert ("IndexError" in said) == (accident == "wrong")
    with pytest.raises(ChildProcessError):  # none is left
        os.waitpid(-1, os.WNOHANG)
    with pytest.raises(SystemExit):  # as it was writing
        common._heard(io.BytesIO(pickle.dumps([work(0)] * 100)[:50]))


def test_large_pictures_take_turns_between_processes(at_once):
    def work(i):
        with common._room(common._AT_ONCE // 3 if i % 8 < 4 else 10):  # each of the four has some of both
            began = time.monotonic()
            time.sleep(0.005)
            return i % 8 < 4, began, time.monotonic()

    done = sorted(common._by_processes(work, range(128), 4), key=lambda d: d[1])
    large = [d for d in done if d[0]]
    assert len(large) == 64 and all(a[2] <= b[1] for a, b in pairwise(large))
    assert any(a[2] > b[1] for a, b in pairwise(done))
    assert common._TURN is None


def test_processes_do_not_outlive_a_killed_run(tmp_path):
    program = "import os, time, common\n"
    program += "def work(i):\n    time.sleep(.02)\n    return os.getpid()\n"
    program += "for pid in common._by_processes(work, range(100_000), 4): print(pid, flush=True)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=path()) as running:
        family = {int(running.stdout.readline()) for _ in range(8)}
        running.kill()
    until = time.time() + 20
    while any(common._alive(str(pid)) for pid in family) and time.time() < until:
        time.sleep(0.05)
    assert len(family) == 4 and not any(common._alive(str(pid)) for pid in family)


def test_a_disk_that_fills_is_a_line(world, tmp_path):
    """As large as the captions and the pixels, but not as the header before these: it fills while they are written through memory."""
    script = """
        mount -t tmpfs -o size=1m none cache && mkdir cache/images || exit 77
        head -c $((1048576 - 4 * 8 * 32 * 32 * 3 - 2 * 4096)) /dev/zero > cache/full
        exec "$@"
    """
    Path("cache").mkdir()
    done = subprocess.run(["unshare", "-rm", "bash", "-c", script, "-", *ZERO_SHOT], capture_output=True, text=True)
    if done.returncode in (1, 77) and "zero_shot" not in done.stderr:
        pytest.skip("needs a small disk of its own")
    assert done.returncode == 2 and "cannot be written: No space left on device" in done.stderr and done.stderr.count("\n") == 1


# ---- damaged caches, results, heads and weights ---------------------------------------------------------------------


def damage(file, how):
    data = bytearray(file.read_bytes())
    if how == "flipped":
        data[-20] ^= 16
    file.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "another": b"[[1], 2, {}]"}.get(how, data))


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "another"])
def test_a_damaged_cache_is_made_anew(world, call, how):
    first = call(zero_shot.main, "--data", "tiny", "--model", "toy-RN")
    assert first[0] == 0
    files = sorted(f for f in Path("cache").rglob("*") if f.is_file() and f.suffix in (".npy", ".npz", ".json"))
    assert len(files) == 6
    for file in files:
        whole = file.read_bytes()
        damage(file, how)
        code, out, err = call(zero_shot.main, "--data", "tiny", "--model", "toy-RN")
        notes = [line for line in out.splitlines() if "is damaged (" in line]
        assert code == 0 and not err and len(notes) == 1 and file.read_bytes() == whole
        assert out.replace(notes[0] + "\n", "") == first[1]


def told(world_name="toy-RN", **more):
    """What a head of four classes for the toy says of itself."""
    names = ["a", "b", "c", "d"]
    sha = common.file_sha256("weights/toy-RN.pt")
    base = {"model": "toy-RN", "features": "penultimate", "act": "", "sha256": sha, "classes": names, "words": names}
    return base | {"prompts": ["a {}"], "type": ""} | more


def head(classes=4, width=512, dtype=torch.float32, value=0.0):
    return {"head.weight": torch.full((classes, width), value, dtype=dtype), "head.bias": torch.full((classes,), value, dtype=dtype)}


def test_odd_heads_are_refused_by_file_and_reason(world, call):
    width = common.load_model("toy-RN", "cpu", features="penultimate").width
    picture = next(Path("data/tiny/Test").glob("*/*.*"))
    odd = {
        "two rows": (told(), head(2, width)),
        "narrow": (told(), head(4, width - 1)),
        "no bias": (told(), {"head.weight": head(4, width)["head.weight"]}),
        "nan": (told(), head(4, width, value=float("nan"))),
        "integers": (told(), head(4, width, torch.int64)),
        "flat": (told(), {"head.weight": torch.zeros(4 * width), "head.bias": torch.zeros(4)}),
        "no words": (told(words=None), head(4, width)),
        "class names": (told(classes=[1, 2, 3, 4]), head(4, width)),
        "few words": (told(words=["a"]), head(4, width)),
        "no model": (told(model=None), head(4, width)),
        "view": (told(view={"size": -1}), head(4, width)),
        "another side": (told(view={"size": 65}), head(4, width)),
        "no number": (told(view={"size": True}), head(4, width)),
        "short": (told(view={"size": 64, "short": -3}), head(4, width)),
        "huge": (told(view={"size": 64, "short": 10**9}), head(4, width)),
        "features": (told(features="x"), head(4, width)),
        "calibration": (told(calibration={"temperature": 0}), head(4, width)),
        "held out": (told(), head(4, width) | {"held_out.weight": torch.zeros(4, 3), "held_out.bias": torch.zeros(4)}),
        "scale": (told(method="cs"), {"head.logit_scale": torch.zeros(3)}),
    }
    if torch.complex64 in safetensors.torch._SIZE:  # older versions cannot write them
        odd["complex"] = told(), head(4, width, torch.complex64)
    for name, (about, tensors) in odd.items():
        save_weights(f"{name}.safetensors", tensors, about)
        runs = [(linear_probe.main, "--load", f"{name}.safetensors", "--predict", picture, "--weights", "weights/toy-RN.pt")]
        runs += [(finetune.main, "--data", "tiny", "--model", "toy-RN", "--head", f"{name}.safetensors", "--epochs", 1)]
        for run in runs[: 1 + (name != "scale")]:
            if name == "scale":
                run = run[:-2]
            code, _, err = call(*run)
            assert code == 2 and f"{name}.safetensors: " in err and err.count("\n") == 1, (name, err)
    save_weights("good.safetensors", head(4, width), told())
    good = Path("good.safetensors").read_bytes()
    assert call(linear_probe.main, "--load", "good.safetensors", "--predict", picture, "--weights", "weights/toy-RN.pt")[0] == 0
    for place in range(0, len(good), len(good) // 40):  # no flipped bit but in white space is passed over
        Path("bad.safetensors").write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        code, out, err = call(linear_probe.main, "--load", "bad.safetensors", "--predict", picture, "--weights", "weights/toy-RN.pt")
        assert code == 2 and err.count("\n") == 1, (place, err)


def test_a_flipped_bit_in_weights(world, capsys):
    good = Path("weights/toy-RN.pt").read_bytes()
    for place in range(100, len(good), len(good) // 20):
        Path("bad.pt").write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        try:
            found = read_weights("bad.pt")[1]
        except SystemExit:
            error = capsys.readouterr().err
            assert error.startswith("pytest") or "bad.pt: not a readable file of tensors" in error
        else:  # between the tensors
            assert all(t.equal(found[name]) for name, t in read_weights("weights/toy-RN.pt")[1].items())


def test_damaged_results(world, call, capsys):
    assert call(zero_shot.main, "--data", "tiny", "--model", "toy-RN", "--out", "r.json")[0] == 0
    record, arrays = read_result("r.json")
    good = Path("r.npz").read_bytes()
    for place in range(0, len(good), len(good) // 60):
        Path("r.npz").write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        with pytest.raises(SystemExit):
            read_result("r.json")
        assert "r.npz: cannot be read" in capsys.readouterr().err
    Path("r.npz").write_bytes(good)
    text = Path("r.json").read_text()
    Path("r.json").write_text(re.sub(r'("top1": 0\.\d)', r"\g<1>7", text))
    with pytest.raises(SystemExit):
        read_result("r.json")
    assert "r.json: damaged, changed by hand, or of older code" in capsys.readouterr().err
    Path("r.json").write_text(text)
    Path("r.npz").unlink()
    with pytest.raises(SystemExit):
        read_result("r.json")
    assert "r.npz: cannot be read" in capsys.readouterr().err
    np.savez("r.npz", **arrays | {"true": arrays["true"][1:]})  # whole, and of another run
    with pytest.raises(SystemExit):
        read_result("r.json")
    assert "r.npz: cannot be read" in capsys.readouterr().err


# ---- odd names and flags ----------------------------------------------------------------------------------------------

ODD = [b"caf\xe9", b"two\nlines", b"\x1b[31mred", b"plain", "\u202ename".encode()]


def odd_names(folder):
    """A data set of five classes with such names, of pictures with such names, and links that go round and nowhere."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ODD:
            place = os.path.join(os.fsencode(folder), split.encode(), name)
            os.makedirs(place)
            for end in (b"1.png", name + b".png", b"3.png"):
                with open(os.path.join(place, end), "wb") as file:
                    Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(file, "PNG")
        (folder / split / "loop").symlink_to("loop")
        (folder / split / "plain" / "loop.png").symlink_to("loop.png")
        (folder / split / "plain" / "gone.png").symlink_to("gone")
        (folder / split / "plain" / "up").symlink_to("..")


def test_odd_names_in_every_script(world):
    odd_names(world / "own")
    Path("t.txt").write_text("a {}\nthe {}\n")
    more = {"linear_probe": "--save h.safetensors --suspects s.csv", "zero_shot": "--grid caf\udce9.png", "prompts": "--templates t.txt"}
    more |= {"few_shot": "--seeds 2 --shots 1", "finetune": "--epochs 1 --batch 8 --save n.safetensors"}
    program = f"import sys, {', '.join(more)}"
    for script, flags in more.items():
        command = f"{script}.py --data ./own --model toy-RN --out caf\udce9-{script}.json {flags}"
        program += f"\nsys.argv = {command.split()!r}\n{script}.main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=path())
    assert done.returncode == 0 and not done.stderr and b"\x1b" not in done.stdout, done.stderr
    for script in more:
        record, arrays = read_result(Path(f"caf\udce9-{script}.json"))
        assert sorted(map(os.fsencode, record["data"]["classes"])) == sorted(ODD) and record["data"]["counts"]["test"] == 15
        assert len(arrays["index"]) == 15


def test_flags_that_cannot_be(world, call):
    """Each ends in one line before any work, by argparse or by fail."""
    Path("deep.json").write_text("[" * 100_000 + "]" * 100_000)
    Path("file").touch()
    long, data = "n" * 300, ["--data", "tiny", "--model", "toy-RN"]
    odd = [["--device", "meta"], ["--seed", "1" * 23], ["--prompts", "deep.json"], ["--classnames", "deep.json"], ["--data", "/"]]
    odd += [["--weights", ""], ["--data", ""], ["--grid", "."], ["--out", "file/x.json"], ["--grid", "file/x"], ["--grid", ""]]
    odd += [["--out", "/proc/x.json"], ["--out", "n" * 249 + ".json"], ["--out", "d.json"]]
    odd += [[flag, long] for flag in ("--data", "--model", "--weights", "--prompts", "--classnames", "--groups", "--grid", "--fit")]
    odd += [["--groups", f"{long}.csv"], ["--model", f"{long}.py"], ["--out", f"{long}.json"], ["--data", f"{long}.csv"]]
    Path("d.json").mkdir()
    (Path("l.json")).symlink_to("l.json")
    for flags in odd:
        code, out, err = call(zero_shot.main, *data, *flags)
        assert code == 2 and err.splitlines()[-1].startswith("zero_shot.py: ") and len(err.splitlines()[-1]) < 2000, (flags, err)
        assert "top-1" not in out and not Path("cache/features").exists(), flags
    for flags in (
        ["--head", long],
        ["--load", long, "--predict", "x"],
        ["--load", "file", "--predict", long],
        ["--save", "file/x.safetensors"],
    ):
        code, _, err = call(finetune.main, "--data", "tiny", *flags)
        assert code == 2 and "Traceback" not in err, flags


def test_a_link_stays_a_link(world, call):
    Path("there").mkdir()
    for name in ("out.json", "new.json"):
        Path(name).symlink_to(f"there/{name}")
    Path("there/out.json").write_text("old")
    for name in ("out.json", "new.json"):
        assert call(zero_shot.main, "--data", "tiny", "--model", "toy-RN", "--out", name)[0] == 0
        assert Path(name).is_symlink() and json.loads(Path("there", name).read_text())["format"] == common.FORMAT


# ---- what fuzzing has found (bench/fuzz.py) ---------------------------------------------------------------------------------


def test_postscript_in_another_picture_is_not_run_either(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text("#!/bin/sh\ntouch started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("cat.jpg", "EPS")
    parts = [(60, b"\1\0"), (65, b"\1"), (20, b"\0\x08"), (30, b"\0\x08"), (120, b"\5")]  # of IPTC: one layer of 8 x 8 px, which is a file
    head = b"".join(bytes([0x1C, 3, kind, 0, len(value)]) + value for kind, value in parts)
    data = Path("cat.jpg").read_bytes()
    Path("dog.jpg").write_bytes(head + bytes([0x1C, 8, 10]) + len(data).to_bytes(2, "big") + data + bytes([0x1C, 9, 10, 0, 1, 0]))
    for name in ("cat.jpg", "dog.jpg"):
        with pytest.raises(ValueError, match="cannot identify"):
            read_rgb(name)
    assert not Path("started").exists() and not common._is_image("cat.eps")


WRITTEN = {"script": "prompts", "labels_used": 3, "data": {"name": "d"}, "metrics": {"ensemble": ["a {}"]}}


@pytest.mark.parametrize(
    "odd", [{"labels_used": "x"}, {"labels_used": {}}, {"data": None}, {"metrics": True}, {"metrics": {"ensemble": 1}}]
)
def test_an_odd_result_of_prompts_is_a_line(odd, tmp_path, capsys):
    for change, code in (({}, 0), (odd, 2)):
        (tmp_path / "t.json").write_text(json.dumps(common.seal(WRITTEN | change, tmp_path / "t.json")))
        try:
            assert common.read_templates([str(tmp_path / "t.json")]) == (["a {}"], 3) and not code
        except SystemExit as end:
            assert end.code == code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == bool(code) and (not code or "t.json: empty, or neither" in error)


def test_what_is_wrong_in_a_file_of_prompts_or_groups_names_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("a {}\nnone\n")
    for name in ("1.png", "2.png"):
        Path(name).touch()
    Path("d.csv").write_text("path,label,group\n1.png,a,g\n2.png,b,h\n")
    for call in (lambda: common.read_templates(["t.txt"]), lambda: common.load_data("./d.csv")):
        with pytest.raises(SystemExit):
            call()
    lines = capsys.readouterr().err.splitlines()
    assert "t.txt: 'none': a template needs {}" in lines[0] and "d.csv: one group a class" in lines[1] and len(lines) == 2


def test_members_without_a_name_are_left_out_aloud(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive, tarfile.open(tmp_path / "d.tar", "w") as other:
        for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png", "x"):
            archive.writestr(name, "")
            other.addfile(tarfile.TarInfo("." if name == "x" else name))
    data = (tmp_path / "d.zip").read_bytes()
    list_of_members = data.index(b"PK\1\2")
    place = data.rindex(b"PK\1\2")  # of x
    cut = bytearray(data[: place + 46] + data[place + 47 :])
    cut[place + 28] = 0  # the length of its name
    cut[-10:-6] = (len(cut) - 22 - list_of_members).to_bytes(4, "little")
    (tmp_path / "d.zip").write_bytes(cut)
    for kind in ("zip", "tar"):
        assert common.load_data(str(tmp_path / f"d.{kind}")).classes == ["a", "b"]
        assert "left out: 1 member (no name)" in capsys.readouterr().out


@pytest.mark.parametrize("damage, word", [("stream", "classnames.json: cannot be read"), ("places", "cut off")])
def test_a_damaged_archive_is_a_line(damage, word, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (("a/1.png", "x"), ("a/2.png", "x"), ("b/1.png", "x"), ("b/2.png", "x"), ("classnames.json", "{}" + " " * 99)):
            archive.writestr(name, text)
        start = archive.getinfo("classnames.json").header_offset + 30 + len("classnames.json")
    data = bytearray((tmp_path / "d.zip").read_bytes())
    data[start if damage == "stream" else -4] |= 7  # no kind of block there is, or another distance of the list of members from the start
    (tmp_path / "d.zip").write_bytes(data)
    with pytest.raises(SystemExit):
        common.load_data(str(tmp_path / "d.zip"))
    error = capsys.readouterr().err
    assert "d.zip" in error and word in error and error.count("\n") == 1


def test_a_pickle_of_anything_is_a_line(tmp_path, capsys, recwarn):
    (tmp_path / "w.pt").write_bytes(pickle.dumps([1.0], protocol=4))
    with pytest.raises(SystemExit):
        read_weights(tmp_path / "w.pt")
    assert "w.pt: not a readable file of tensors" in capsys.readouterr().err and not recwarn.list


@pytest.mark.parametrize("odd", [{"labels_used": "x"}, {"labels_used": -1}, {"act": 5}])
def test_odd_words_of_weights_are_a_line(odd, tmp_path, capsys):
    save_weights(tmp_path / "w.safetensors", {}, {"labels_used": 3, "act": "gelu"})
    assert read_weights(tmp_path / "w.safetensors")[0]["labels_used"] == 3
    save_weights(tmp_path / "w.safetensors", {}, odd)
    with pytest.raises(SystemExit):
        read_weights(tmp_path / "w.safetensors")
    error = capsys.readouterr().err
    assert f"w.safetensors: says of itself what no script here writes, see its {next(iter(odd))}" in error and error.count("\n") == 1


def test_a_head_towards_captions_needs_a_text_side(world, call):
    picture = next(Path("data/tiny/Test").glob("*/*.*"))
    state = torch.load("weights/toy-imagenet.pt", weights_only=True)
    save_weights("cs.safetensors", state, told(model="toy-imagenet", method="cs"))
    code, _, err = call(finetune.main, "--load", "cs.safetensors", "--predict", picture)
    assert code == 2 and "has no text side" in err and err.count("\n") == 1


@pytest.mark.parametrize("change", ["lacks", "has more", "another shape", "more of a head"])
@pytest.mark.parametrize("name", ["toy-RN", "toy-ViT", "toy-imagenet"])
def test_another_network_in_a_file_is_refused_by_its_name(name, change, world, capsys):
    state = torch.load(f"weights/{name}.pt", weights_only=True)
    key = [key for key in state if key.endswith("weight")][-1]
    more = {"has more": {"x": torch.zeros(1)}, "another shape": {key: state[key][:-1]}, "more of a head": {"head.x": torch.zeros(1)}}
    state |= more.get(change, {})
    if change == "lacks":
        del state[key]
    save_weights("w.safetensors", state, told())
    assert "w.safetensors: not " in refused(capsys, name, "cpu", "w.safetensors")


def test_files_whose_names_tell_their_hash_are_compared_with_it(world, capsys, monkeypatch):
    """torchvision's in the cache of torch.hub, and blobs of the Hugging Face hub: old ones have no checksums of their own."""
    monkeypatch.setenv("TORCH_HOME", str(world))
    torch.manual_seed(0)
    folder, net = world / "hub/checkpoints", torchvision.models.squeezenet1_1()
    folder.mkdir(parents=True)
    torch.save(net.state_dict(), "w.pth", _use_new_zipfile_serialization=False)
    sha = common.file_sha256("w.pth")
    known = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT.value
    monkeypatch.setattr(known, "url", f"https://x/squeezenet1_1-{sha[:8]}.pth")
    here, blob = folder / f"squeezenet1_1-{sha[:8]}.pth", world / sha
    os.replace("w.pth", here)
    shutil.copy(here, blob)
    Path("link.pth").symlink_to(blob)
    for file, args in ((here, ()), (blob, ("link.pth",))):
        good = file.read_bytes()
        assert load_model("squeezenet1_1", "cpu", *args).sha256 == sha
        file.write_bytes(good[:-1000] + bytes([good[-1000] ^ 4]) + good[-999:])
        assert "its SHA-256 is not the" in refused(capsys, "squeezenet1_1", "cpu", *args)
