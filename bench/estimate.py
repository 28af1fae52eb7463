"""How long `make all` will take on this machine, before it begins; and whether pictures have changed since it ran last.

    python bench/estimate.py --data fruits360 --runs results/few_shot/fruits360/RN101.json ...
    python bench/estimate.py --data toy --stamp results/toy.fingerprint       # rewrites the file only if a picture changed

Each model encodes a few batches of noise. The rest is arithmetic, rough, and rougher on a busy machine.
"""

import argparse
import json
import re
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import upsample
from common import atomic, counted, digest, fail, load_data, load_model, pick_device, speed

START, FIT = 6, 30  # seconds: to start a script; to fit a probe or few-shot methods on a few thousand features
STEP = 3  # forward passes that a training step costs
RATES = 2  # learning rates that make tries
EPOCHS, BATCH, STAGES = 5, 16, (20, 10)  # defaults of finetune.py and of upsample.py train
CRITIC = 3  # pixel steps that an adversarial step costs


def duration(seconds):
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{int(seconds < 10 * size)}f} {unit}"
    return f"{seconds:.0f} s"


def generator_step(device):
    """Seconds of a step on pixels with SRGAN's own size, from one crop: on a GPU too much."""
    net = upsample.Generator(16, 64).to(device)
    side = upsample.SIDE // upsample.SCALE
    times = []
    for _ in range(4):
        began = time.perf_counter()
        net(torch.rand(1, 3, side, side, device=device)).mean().backward()
        next(net.parameters()).grad.sum().item()  # waits for the device
        times.append(time.perf_counter() - began)
    return BATCH * min(times)


def restamp(stamp, data, settings):
    """Rewrite the stamp where anything has changed that every result depends on, and say what; whether there was another."""
    now = {"pictures": data.fingerprint, "names of classes": digest([data.words, data.type]), "settings": settings}
    files = sorted(Path("weights").glob("*.pt"))  # of the toys; plot.py refuses results of different weights
    now["weights"] = digest([[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files] if data.name == "toy" else [])
    before, there = {}, stamp.is_file()
    if there:
        with suppress(ValueError):  # of an older form
            before = json.loads(stamp.read_text(encoding="utf-8"))
    if before == now:
        return False
    if there:
        what = [key for key in now if not isinstance(before, dict) or before.get(key) != now[key]]
        print(f"{data.name}: {', '.join(what)} changed, every result is made anew")
    with atomic(stamp) as temporary:
        temporary.write_text(json.dumps(now), encoding="utf-8")
    return there


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", nargs="*", default=[], metavar="FILE", help="results that make will make where they are missing")
    parser.add_argument("--stamp", metavar="FILE", help="keep here what every result depends on: pictures, words, settings, weights")
    parser.add_argument("--settings", default="", metavar="TEXT", help="those of the Makefile")
    args = parser.parse_args()

    data, changed = load_data(args.data, union=True), False
    if args.stamp:
        changed = restamp(Path(args.stamp), data, args.settings)
    if wrong := [file for file in args.runs if len(Path(file).parts) < 3]:
        fail(f"--runs {wrong[0]}: must be SCRIPT/DATA/MODEL.json")
    todo = [Path(file) for file in args.runs if changed or not Path(file).exists()]
    runs = [
        (*file.parts[-3:-1], *re.fullmatch(r"(.*?)(-ml|-cs|-frozen)?(?:(?<=-ml|-cs)-[\d.]+e?-?\d*)?", file.stem).groups(""))
        for file in todo
    ]
    if not runs:
        return

    device, _ = pick_device()
    images, train = sum(map(len, data.splits.values())), len(data.splits.get("train", ()))
    print(f"{data.name}: {counted(images, 'image')}, {counted(len(runs), 'run')} to do on {device}, roughly:")
    clips = {name for script, _, name, _ in runs if script == "zero_shot"}
    srgan = any(script == "upsample" for script, *_ in runs)
    total, more, unknown = 0, 0, []
    for name in sorted({name for script, _, name, _ in runs if script != "upsample"}):
        mine = [run for run in runs if run[2] == name]
        try:
            model = load_model(name)
        except SystemExit:  # it has said why; the runs will, too
            unknown.append(name)
            continue
        rate = speed(model, torch.randint(0, 256, (model.batch, 3, model.size, model.size), dtype=torch.uint8), rounds=2)
        fits = sum(START + FIT * (script in ("linear_probe", "few_shot")) for script, *_ in mine)
        frozen = images / rate * len({folder for _, folder, *_ in mine}) + fits
        trained = sum({"-ml": STEP, "-cs": STEP, "-frozen": 1}.get(variant, 0) for *_, variant in mine) * EPOCHS * train / rate
        total += frozen + trained
        print(f"  {name:16} {rate:8,.1f} images/s: features and fits {duration(frozen)}", end=", ")
        if trained:
            print(f"fine-tuning {duration(trained)}")
        else:  # ml and frozen; of CLIP cs, and both with their features on the enlarged pictures, too
            wanted = EPOCHS * train / rate * (RATES * STEP * (1 + 3 * (name in clips)) + 1) + (name in clips) * images / rate
            more += wanted
            print(f"with FINETUNE=1 {duration(wanted)} more")
    if clips or srgan:
        step = generator_step(device)  # enlarging takes a forward pass a picture, for which we take 100 px
        seconds = train / BATCH * (STAGES[0] + CRITIC * STAGES[1]) * step + images * step / BATCH / STEP * (100 / 24) ** 2
        total, more = total + srgan * seconds, more + (not srgan) * seconds
        print(f"  SRGAN            of default size: {'' if srgan else 'with FINETUNE=1 '}{duration(seconds)}{'' if srgan else ' more'}")
    without = f", without {', '.join(unknown)}," if unknown else ""
    print(f"in all{without} about {duration(total)}" + (f"; with FINETUNE=1 {duration(total + more)}" if more else ""))


if __name__ == "__main__":
    main()
