"""How long `make all` still has to work on this machine: what a few pictures, captions, fits and steps take here, multiplied.

python bench/estimate.py --data fruits360 --runs results/few_shot/fruits360/RN101.json ...
"""

import argparse
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import upsample
from common import CLIP, add_flags, counted, image_sizes, load_data, load_model, pick_device, spelled, torch
from linear_probe import ENOUGH, MOST, logistic_regression
from plot import older
from prompts import POOL

# counted and timed in runs on 12 and 100 sports, birds, simpsons, fruits360 and toy pictures, on a CPU
EVALUATIONS = 70  # of the loss in the sweep of a probe, times the root of the images a class: 50 to 76, of simpsons 13 (mobilenet_v2)
FEW_SHOT = 0.9  # of the time of a sweep takes few_shot.py, with captions three times as long: .2 to 1.1 (mobilenet_v2)
CHOOSING = 5  # times that prompts.py goes over its templates: 3 and 4 with those of the toys
STEP = 5  # passes that a step of finetune.py costs: toy-ViT 2.9, toy-RN 5.0, squeezenet1_1 3.8, mobilenet_v2 6 to 7
FROZEN = 2  # and one that trains the head only: toy-ViT 1.4, toy-RN 2.2
PIXEL, ADVERSARIAL = 6, 12  # passes that a step of upsample.py costs: 5.5 to 6.4 on pixels, twice as many against a discriminator
HELD = 0.2  # the share of training images that validates where there is no val folder
RATES, EPOCHS, STAGES, ALPHAS = 2, 5, (20, 10), 11  # defaults of the Makefile, of finetune.py, of upsample.py train, and of WiSE-FT


def duration(seconds):
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def seconds(work, calls=3):
    """Of the fastest call but the first, which warms up, or of a single one; `work` waits for its device."""
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times[1:] or times)


@cache
def starting(modules):
    """Seconds until a script has imported these modules."""
    return seconds(lambda: subprocess.run([sys.executable, "-c", f"import {modules}"], stderr=subprocess.DEVNULL), 1)


def speed(model, x):
    """Images a second from uint8 (B, 3, S, S) to features."""
    return len(x) / seconds(lambda: model.encode_image(x).cpu())


def costs(model, data, n):
    """{kind of run: seconds}, with the features that it is the first to need; n {"train": how many pictures, ...}."""
    image = 1 / speed(model, torch.randint(0, 256, (model.batch, 3, model.size, model.size), dtype=torch.uint8))
    caption = seconds(lambda: model.embed(32 * ["a photo of an apple, a type of fruit."])) / 32 if model.has_text else 0
    templates, classes, some = len(POOL) * (1 + bool(data.type)), len(data.classes), max(1, min(n["train"], 2000))
    x, y = torch.randn(some, model.width, device=model.device), torch.arange(some, device=model.device) % classes
    head = x.new_zeros(classes, model.width), x.new_zeros(classes)
    evaluation = seconds(lambda: logistic_regression(x, y, 0.01, *head, steps=10)[0].cpu()) / 11 * n["train"] / some  # 10 steps take 11
    sweep = EVALUATIONS * (n["train"] / classes) ** 0.5 * evaluation
    looks = 2 * EPOCHS * n["held"] + 3 * n["test"]
    return {
        "zero_shot": classes * caption + n["test"] * image,
        "prompts": templates * (classes * caption + CHOOSING * evaluation / 2) + (n["all"] - n["test"]) * image,
        "linear_probe": n["probes"] * sweep + n["all"] * image,
        "few_shot": sweep * FEW_SHOT * (3 if model.has_text else 1),
        "finetune": (STEP * EPOCHS * n["learn"] + looks + ALPHAS * n["held"]) * image,
        "frozen": (FROZEN * EPOCHS * n["learn"] + n["held"]) * image,
    }


def srgan(side, n):
    """Seconds to train one of default size on pictures reduced to `side` px; enlarging all of them takes little beside it."""
    device, dtype = pick_device()
    model = upsample.as_model(upsample.fold(upsample.Generator(), dtype), "srgan", side, device, dtype)
    one = seconds(lambda: upsample.restore(model, torch.zeros(8, 3, side, side, dtype=torch.uint8)).cpu()) / 8
    return one * (n["learn"] * (PIXEL * STAGES[0] + ADVERSARIAL * STAGES[1]) + 2 * sum(STAGES) * min(upsample.VALIDATE, n["held"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    add_flags(parser, "label-from")
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME", help="exact names of the encoders that the files are called by")
    parser.add_argument("--runs", nargs="*", default=[], type=Path, metavar="FILE", help="results that make makes where they are missing")
    parser.add_argument("--stamp", type=Path, metavar="FILE", help="and where they are older than this")
    args = parser.parse_args()
    todo = [file for file in args.runs if not file.exists() or (args.stamp and older(file, args.stamp))]
    if not todo:
        return
    with redirect_stdout(None):  # the runs say the same
        data = load_data(args.data, union=True, label_from=args.label_from)
    n = {split: len(data.splits.get(split, ())) for split in ("train", "val", "test")}
    n["all"] = sum(n.values())
    n["held"] = n["val"] or max(1, round(HELD * n["train"]))
    n["learn"] = max(0, n["train"] - (0 if n["val"] else n["held"]))
    n["probes"] = 1 if n["val"] else max(1, min(MOST, ENOUGH // n["held"]))
    print(f"{data.name}: {counted(n['all'], 'image')}, {counted(len(todo), 'run')} to do on {pick_device()[0]}, roughly:")
    rows = [row for split in data.splits.values() for row in split[:: len(split) // 32 + 1]]
    with ThreadPoolExecutor() as pool:  # a broken picture is for the runs to name
        files = [row[0] for row in rows]
        decoding = seconds(lambda: wait([pool.submit(lambda file: data.picture(file).resize((224, 224)), file) for file in files]), 1)
        decoding *= n["all"] / len(rows)
    start, whole = starting("torch"), starting("torch, torchvision")
    jobs, spent = {}, {"the rest": (decoding + 3 * start, 0)}  # with bench/speed.py and plot.py
    restored = any("upsample" in file.parts for file in todo)
    tuning = any("finetune" in file.parts for file in args.runs)
    names = {spelled(name): name for name in args.models}
    for file in todo:
        name = re.sub(r"-(ml|cs)-[\d.e-]+$|-frozen$", "", file.stem)
        name = names.get(name, name)
        jobs.setdefault(name, []).append("frozen" if file.stem.endswith("-frozen") else file.parts[-3])
    jobs.pop("eval", None)  # of the SRGAN
    for name, mine in jobs.items():
        with suppress(SystemExit):  # of an encoder that cannot be loaded, which says why
            began = time.perf_counter()
            model = load_model(name, features="penultimate")
            loading, each = time.perf_counter() - began, costs(model, data, n)
            begin = loading + (start if name in CLIP or name.startswith("toy-") else whole)  # these need no torchvision
            more = ["frozen"] + RATES * ["finetune"]
            if model.has_text:  # cs too, and all on enlarged pictures
                more += 3 * RATES * ["finetune"] + ["zero_shot", "linear_probe"]
            spent[name] = [sum(begin + each[kind] for kind in kinds) for kinds in (mine, more * (not tuning))]
    if restored or (not tuning and data.kind != "csv" and any("zero_shot" in file.parts for file in args.runs)):
        took = 3 * start + srgan(upsample.short_side(image_sizes(data, rows)) // upsample.SCALE, n)
        spent["SRGAN"] = (took, 0) if restored else (0, took)
    wide = max(16, *map(len, spent))
    for name, (now, more) in spent.items():
        print(f"  {name:{wide}} {duration(now)}" + (f", with FINETUNE=1 {duration(more)} more" if more else ""))
    total, more = (sum(column) for column in zip(*spent.values()))
    print(f"in all about {duration(total)}" + (f"; with FINETUNE=1 {duration(total + more)}" if more else ""))


if __name__ == "__main__":
    main()
