"""Coverage-guided fuzzing of what reads other people's files: whatever is in them, it ends in a result or in one line that names the file.

    pip install atheris                                              # Linux
    python bench/fuzz.py read_rgb --seconds 600 --seeds FOLDER       # FOLDER holds whole files to start from

It stops at the first file that makes a reader do anything else, take long, write elsewhere, or begin a program or a connection, and keeps
it here as crash-... or timeout-... Seeds of `head` are what heads say of themselves, as JSON; of `record` the results/ of one data set.
"""

import argparse
import io
import json
import os
import random
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ODD = (None, True, 0, -1, 0.5, 1e308, float("nan"), 10**400, "", "x", "../x", "\0", "\udcff", "9" * 400, [], [[]], {}, {"x": 1}, [1, "x"])
BEGINS, BROKEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"), []  # the latter: what should not be


def watch(event, args):  # a hook of all that Python has the system do
    writes = event == "open" and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if event in BEGINS or (writes and not os.path.abspath(args[0]).startswith((os.getcwd(), "/dev/"))):
        BROKEN.append(f"{event} {args[0]}")


def picture(name):
    for view in (common.View(32), common.View(24, "pad"), common.View(24, "squash", "bilinear", 30)):
        with suppress(ValueError, OSError, MemoryError):
            assert common._read_image(name, view)[0].shape == (view.size, view.size, 3)


def pictures(name):
    data = common.load_data(f"./{name}")
    for path, *_ in (row for rows in data.splits.values() for row in rows):
        with suppress(ValueError, MemoryError):
            data.picture(path)
    os.closerange(100, 200)  # an archive stays open as long as its program


def head(name):
    told, zeros = common.read_json(name), common.torch.zeros
    common.check_head(name, told if isinstance(told, dict) else {}, {"head.weight": zeros(2, 8), "head.bias": zeros(2)})


def record(name):
    shutil.copytree("seeds", "results", dirs_exist_ok=True)
    data, files = Path(name).read_bytes(), sorted(Path("results").rglob("*.json"))
    file = next((file for file in files if str(file).encode() in data), files[0])  # in the place of what its command wrote
    file.write_bytes(data)
    plot.render(plot.summarise(plot.Study("d", plot.load("results", file.parent.name))))


TARGETS = {  # readers, each with the names of what it reads
    "read_rgb": {"x.png": picture},
    "archive": {"d.zip": pictures, "d.tar": pictures},
    "weights": dict.fromkeys(("w.pt", "w.safetensors"), lambda name: common.check_head(name, *common.read_weights(name))),
    "head": {"h.safetensors": head},
    "record": {".json": record},
    "texts": dict.fromkeys(("t.json", "t.txt"), lambda name: common.read_templates([name], "fruit"))
    | {"d.csv": lambda name: common.load_data(f"./{name}"), "g.csv": lambda name: common._group_names(name, ["a/1.png"])}
    | {"classnames.json": lambda name: common._class_words(Path(), ["a", "b"])},
}


def mutate(data, most, seed):
    """An odd value at a random place of JSON; of all else what libFuzzer makes of it."""
    pick = random.Random(seed)
    with suppress(ValueError, RecursionError):
        place, key = value = [json.loads(data)], 0
        while isinstance(place[key], (dict, list)) and place[key] and pick.random() < 0.9:
            place = place[key]
            key = pick.choice(list(place) if isinstance(place, dict) else range(len(place)))
        place[key] = pick.choice(ODD)
        return json.dumps(value[0][0]).encode()[:most]
    return atheris.Mutate(data, most)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60, help="(%(default)s)")
    parser.add_argument("--seeds", type=Path, metavar="FOLDER", required=True, help="whole files to start from")
    args = parser.parse_args()
    global atheris, common, plot
    import atheris  # here, so that --help needs none

    with atheris.instrument_imports(include=["common", "plot", "PIL", "zipfile", "tarfile", "csv", "json"]):
        import common
        import plot

        common.Image.init()  # all its decoders
    for later in (common.torch, common.torchvision):  # which begin programs of their own when they are imported
        common._import(later)

    def one(data):
        for name, read in TARGETS[args.target].items() if data else ():
            Path(name).write_bytes(data)
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said, suppress(SystemExit):
                read(name)
            assert not (line := said.getvalue()) or (line.count("\n") == 1 and name in line), line
        assert not BROKEN, BROKEN

    flags = [f"-max_total_time={args.seconds}", "-timeout=20", "-rss_limit_mb=6000", "-max_len=200000", f"-artifact_prefix={os.getcwd()}/"]
    os.chdir(Path(shutil.copytree(args.seeds, f"{tempfile.mkdtemp()}/seeds")).parent)
    os.mkdir("found")
    sys.addaudithook(watch)
    atheris.Setup([sys.argv[0], *flags, "found", "seeds"], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
