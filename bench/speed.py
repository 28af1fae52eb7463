"""How many images a second each encoder takes, all in one process and in turns, so that a busy moment is no encoder's alone.

    python bench/speed.py --data toy --models toy-ViT toy-RN toy-imagenet --out results/toy.speed.json

From decoded picture to features, enlarging included. plot.py reads the file; only a clearly faster encoder (1.5 times) counts as faster.
"""

import argparse
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import add_flags, at_least, ending, load_data, load_model, progress, read_json, spelled, write_json

ROUNDS = 7


def known(file, key):
    """{model: images a second} that `file` holds for the same pictures, shown in the same way."""
    found = read_json(file) if Path(file).is_file() else {}
    speeds = found.get("images_per_second") if isinstance(found, dict) and found.get("key") == key else None
    return speeds if isinstance(speeds, dict) else {}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="toy", help="(%(default)s)")
    add_flags(parser, "label-from fit")
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--batch", type=at_least(1), help="images at a time (that of each model)")
    parser.add_argument("--out", type=ending(".json"), required=True, metavar="FILE.json")
    args = parser.parse_args()

    data = load_data(args.data, union=True, label_from=args.label_from)
    key = [data.fingerprint, args.fit]
    before = known(args.out, key)
    if {spelled(m) for m in before} >= {spelled(m) for m in args.models}:
        return print(f"{args.out}: speeds are measured already")
    running = {}
    for name in args.models:
        try:
            model = load_model(name, fit=args.fit)
        except SystemExit:  # it has said why; the others are measured all the same
            continue
        with redirect_stdout(None):  # the runs have said it
            x = data.images(model.view, ["test"])["test"][: args.batch or model.batch]
        model.encode_image(x)
        running[name] = model, x, []
    for _ in progress(range(ROUNDS), "speeds", "round"):
        for model, x, rates in running.values():
            began = time.perf_counter()
            model.encode_image(x).cpu()  # waits for the device
            rates.append(len(x) / (time.perf_counter() - began))
    if not running:
        return
    speeds = {model.name: max(rates) for model, _, rates in running.values()}
    write_json(args.out, {"key": key, "images_per_second": before | speeds, "rounds": ROUNDS})
    print("images/s, the fastest of {} rounds in turns: {}".format(ROUNDS, ", ".join(f"{n} {s:,.0f}" for n, s in speeds.items())))


if __name__ == "__main__":
    main()
