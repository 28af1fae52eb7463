"""Two processes of one thread each against one process of two threads: images a second of features, and seconds of a training step.

    python bench/distributed.py [--model toy-ViT]

In turns, each in processes of its own, whose start does not count. On a machine with several GPUs each process has one of its own.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import finetune
from common import add_flags, at_least, fit, half_epochs, hold_out, load, parallel

IMAGES, BATCH, STEPS = 3000, 64, 8


def measure(args):
    """{what: number} of this process, or of those that torchrun has started."""
    data, model = load(args)
    train = hold_out(data.images(model.view), args.seed)["train"]
    model.features(train.take(np.arange(256) % len(train)))  # to warm up
    many = train.take(np.arange(IMAGES) % len(train))
    began = time.perf_counter()
    model.features(many)
    found = {"images a second": IMAGES / (time.perf_counter() - began)}

    head = finetune.Linear(torch.zeros(len(data.classes), model.width), torch.zeros(len(data.classes)))
    net = finetune.Classifier(model.visual, head.to(model.device))
    step = finetune.train_step(parallel(net), model)
    for steps in (2, STEPS):
        optimizer = torch.optim.AdamW(finetune.parameter_groups(net, 1e-5, 1e-3, 0.1), fused=True)
        legs = half_epochs(finetune.loader(many, args.seed), steps * BATCH, BATCH, 1, args.seed)
        history, _ = fit(net, optimizer, legs, step, lambda: 0.0, model, prepare=finetune.preparation(model))
    return found | {"seconds a step": history[-1]["busy"] / STEPS}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(1), default=3, help="(%(default)s)")
    parser.add_argument("--measured", metavar="FILE", help="write what one of both comes to here; the program calls itself with it")
    add_flags(parser, "data model weights act type classnames groups seed device precision batch")
    args = parser.parse_args()
    if args.measured:
        found = measure(args)
        if os.environ.get("RANK", "0") == "0":
            Path(args.measured).write_text(json.dumps(found))
        return

    ways = {"one process": (["-m", "torch.distributed.run", "--nproc-per-node", "1"], "2")}
    ways |= {"two processes": (["-m", "torch.distributed.run", "--nproc-per-node", "2"], "1")}
    found = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:  # where nothing is cached
        for name in ("data", "weights"):
            Path(folder, name).symlink_to(Path(name).absolute())
        for _ in range(args.rounds):
            for way, (start, threads) in ways.items():
                command = [sys.executable, *start, __file__, *sys.argv[1:], "--measured", "measured.json"]
                subprocess.run(command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": threads}, check=True, stdout=subprocess.DEVNULL)
                found[way].append(json.loads(Path(folder, "measured.json").read_text()))
                print(f"{way:14}", ", ".join(f"{what} {number:.4g}" for what, number in found[way][-1].items()), flush=True)
                shutil.rmtree(Path(folder, "cache"))
    for what in found["one process"][0]:
        one, two = (np.median([row[what] for row in rows]) for rows in found.values())
        ratio = two / one if what == "images a second" else one / two
        print(f"{what}, medians: two processes {two:.4g}, one {one:.4g}, ratio {ratio:.2f} (above 1: two are faster)")


if __name__ == "__main__":
    main()
