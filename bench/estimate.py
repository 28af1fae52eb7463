"""How long `make all` still has to work on this machine, said before it begins.

    python bench/estimate.py --data fruits360 --runs results/few_shot/fruits360/RN101.json ...

The pieces are measured here: starting a script, decoding some of the pictures, and for each model encoding them, a caption, a
step of a fit and one of training. The rest is arithmetic, rough, and rougher where the load of the machine changes.
"""

import argparse
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout, suppress
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import finetune
import linear_probe
import prompts
import upsample
from common import HOLDOUT, counted, embed_captions, fail, image_sizes, load_data, load_model, pick_device, read_image

# counted in runs on 12 and 100 sports, birds, simpsons, fruits360 and toy pictures
EVALUATIONS = 130  # of the loss in the sweep of a probe, times the root of the images a class: 31 to 168
FEW_SHOT = 0.5  # of the time of a sweep takes few_shot.py; with captions three times as long
CHOOSING = 8  # times that prompts.py goes over its templates
FROZEN = 0.45  # of a training step, where only the head is trained: toy-ViT .40, toy-RN .48
CRITIC = 3  # pixel steps that an adversarial step costs
SAVING = 0.01  # seconds to write an enlarged picture


def duration(seconds):
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{int(seconds < 10 * size)}f} {unit}"
    return f"{seconds:.0f} s"


def seconds(work, rounds=2):
    """Of the fastest call of a few, after one that warms up; `work` gives a tensor, so that its device is waited for."""
    times = []
    for _ in range(1 + rounds):
        began = time.perf_counter()
        work().cpu()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def speed(model, x):
    """Images a second from uint8 (B, 3, S, S) to features."""
    return len(x) / seconds(lambda: model.encode_image(x))


def decode(data, rows, size):
    """(seconds a picture, uint8 (N, 3, size, size)) of some of the pictures; broken ones the runs will name."""
    began = time.perf_counter()

    def read(row):
        with suppress(Exception):
            return read_image(data.root / row[0], size)[0]

    with ThreadPoolExecutor() as pool:
        found = [pixels for pixels in pool.map(read, rows) if pixels is not None]
    return (time.perf_counter() - began) / len(rows), torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


def training(net, x):
    """Seconds a picture of x (B, 3, S, S) to go through a network and back."""
    parameters = [p.requires_grad_(True) for p in net.parameters()]
    return seconds(lambda: torch.autograd.grad(net(x).float().square().mean(), parameters, allow_unused=True)[0], 1) / len(x)


def option(text, name, default):
    """The number behind --name in the options that make hands to a script."""
    found = re.search(rf"--{name}[ =](\d+)", text)
    return int(found[1]) if found else default


def costs(model, x, data, n, epochs):
    """{run: seconds} with the features that it is the first to need; x (N, 3, S, S) are pictures, n {kind: how many} of them."""
    image = 1 / speed(model, x[torch.arange(model.batch) % len(x)])
    captions = [f"a photo of a {word}, a type of {data.type}." for word in data.words[:32]]
    caption = seconds(lambda: embed_captions(model, captions)) / len(captions) if model.encode_text else 0
    captions, templates = caption * len(data.words), len(prompts.POOL) * (1 + bool(data.type))

    rows, classes = min(n["train"], 2000), len(data.classes)
    features, labels = torch.randn(rows, model.width, device=model.device), torch.arange(rows, device=model.device) % classes
    head = features.new_zeros(classes, model.width), features.new_zeros(classes)
    fit = seconds(lambda: linear_probe.logistic_regression(features, labels, 0.01, *head, steps=10)[0])
    evaluation = fit / 11 * n["train"] / rows  # of which 10 steps take 11
    sweep = EVALUATIONS * (n["train"] / classes) ** 0.5 * evaluation

    x = x[: max(1, min(32, int(0.25 / image)))].to(model.device)  # few where they take long
    matrices, sigmas = map(torch.from_numpy, finetune.draw_augmentation(0, 0, len(x)))
    blurred = sigmas.nonzero()[:, 0]
    warp = [t.to(model.device) for t in (matrices, blurred, sigmas[blurred])]
    augmented = seconds(lambda: finetune.augment(x, *warp, model.size), 1) / len(x)
    with model.autocast():
        step = epochs * n["learn"] * (augmented + training(model.visual, model.inputs(x)))
    tuned = step + image * ((10 + 2 * epochs) * n["held"] + 3 * n["test"])  # looks at them, of WiSE-FT and while it trains
    return {
        "zero_shot": captions + n["test"] * image,
        "prompts": templates * (2 * captions + CHOOSING * evaluation / 2) + (n["all"] - n["test"]) * image,
        "linear_probe": n["probes"] * sweep + n["all"] * image,
        "few_shot": sweep * FEW_SHOT * (3 if caption else 1),
        "ml": tuned,
        "cs": tuned,
        "frozen": FROZEN * step + image * (2 * epochs * n["held"] + 2 * n["test"]),
    }


def srgan(data, rows, n, options, device):
    """Seconds to train with these options, to enlarge all pictures and to measure it."""
    sizes = [size for size in image_sizes(data, rows) if size]
    side = upsample.short_side(sizes) // 4
    net = upsample.Generator(option(options, "blocks", 16), option(options, "width", 64)).to(device)
    step = training(net, torch.rand(8, 3, side, side, device=device))
    epochs, adversarial = option(options, "epochs", 20), option(options, "adversarial", 10)
    looks = 2 * (epochs + adversarial) * min(upsample.VALIDATE, n["held"]) / 3  # a step goes there once and back twice
    larger = np.mean([width * height for width, height in sizes]) / side**2
    enlarging = n["all"] * (larger * step / 3 + SAVING)
    return step * (n["learn"] * (epochs + CRITIC * adversarial) + looks) + enlarging


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", nargs="*", default=[], type=Path, metavar="FILE", help="results that make makes where they are missing")
    parser.add_argument("--stamp", type=Path, metavar="FILE", help="and where they are older than this")
    parser.add_argument("--rates", type=int, default=2, help="learning rates that FINETUNE=1 tries (%(default)s)")
    parser.add_argument("--tune", default="", metavar="TEXT", help="options of finetune.py")
    parser.add_argument("--srgan", default="", metavar="TEXT", help="options of upsample.py train")
    args = parser.parse_args()
    if wrong := [file for file in args.runs if len(file.parts) < 3]:
        fail(f"--runs {wrong[0]}: must be SCRIPT/DATA/MODEL.json")
    since = args.stamp.stat().st_mtime if args.stamp and args.stamp.exists() else 0
    todo = [file for file in args.runs if not file.exists() or file.stat().st_mtime < since]
    if not todo:
        return

    began = time.perf_counter()
    subprocess.run([sys.executable, ROOT / "zero_shot.py", "--help"], stdout=subprocess.DEVNULL)
    start = time.perf_counter() - began
    with redirect_stdout(None):  # the runs say the same
        data = load_data(args.data, union=True)
    n = {split: len(data.splits.get(split, ())) for split in ("train", "val", "test")}
    n |= {"all": sum(n.values()), "held": n["val"] or round(HOLDOUT * n["train"])}
    n |= {"learn": n["train"] if n["val"] else n["train"] - n["held"]}
    n |= {"probes": 1 if n["val"] else max(1, min(linear_probe.MOST, linear_probe.ENOUGH // max(1, n["held"])))}
    rows = [row for split in data.splits.values() for row in split]
    rows = rows[:: -(-len(rows) // 64)]
    device, _ = pick_device()
    print(f"{data.name}: {counted(n['all'], 'image')}, {counted(len(todo), 'run')} to do on {device}, roughly:")

    tuning = any("finetune" in file.parts for file in args.runs)
    jobs = {}  # encoder: [(folder, kind of run)]
    for file in todo:
        name, kind = re.fullmatch(r"(.*?)(?:-(ml|cs|frozen)(?:(?<!n)-[\d.e-]+)?)?", file.stem).groups()
        jobs.setdefault(name, []).append((file.parts[-2], kind or file.parts[-3]))
    restored = jobs.pop("eval", None)
    total, more, decoded, unknown = 2 * start, 0, {}, []  # bench/speed.py and plot.py begin, too
    for name, mine in jobs.items():
        began = time.perf_counter()
        try:
            model = load_model(name, features="penultimate")
        except SystemExit:  # it has said why; the runs will, too
            unknown.append(name)
            continue
        load = start + time.perf_counter() - began
        if model.size not in decoded:
            decoded[model.size] = decode(data, rows, model.size)
            total += decoded[model.size][0] * n["all"] * len({folder for folder, _ in mine})
        each = costs(model, decoded[model.size][1], data, n, option(args.tune, "epochs", 5))
        mine = sum(load + each[kind] for _, kind in mine)
        wanted = [] if tuning else ["frozen"] + args.rates * ["ml"]
        if wanted and model.net:  # and the same on the enlarged pictures
            wanted += args.rates * ["cs"] + ["zero_shot", "linear_probe"] + args.rates * ["ml", "cs"]
        wanted = sum(load + each[kind] for kind in wanted)
        total, more = total + mine, more + wanted
        print(f"  {name:16} {duration(mine)}" + (f", with FINETUNE=1 {duration(wanted)} more" if wanted else ""))
    if restored or (more and "zero_shot" in str(args.runs)):
        took = 3 * start + srgan(data, rows, n, args.srgan, device)
        total, more = (total + took, more) if restored else (total, more + took)
        print(f"  SRGAN            {duration(took)}" if restored else f"  SRGAN            with FINETUNE=1 {duration(took)} more")
    without = f", without {', '.join(unknown)}," if unknown else ""
    print(f"in all{without} about {duration(total)}" + (f"; with FINETUNE=1 {duration(total + more)}" if more else ""))


if __name__ == "__main__":
    main()
