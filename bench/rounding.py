"""How far the toy world's numbers move where nothing but rounding differs, as between processors; and which claims then fail.

    python bench/rounding.py worlds               # three worlds below worlds/, 9 min each on 2 cores; again: what is missing, and the table

In each world toy.py trains its encoders from first weights that are off by a thousandth, as bfloat16 rounds them: hundreds of steps later
they are other networks. All else is as ever: `make all`, then `make check`, whose page is of one processor.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from shutil import copyfile

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TRAIN = """
import multiprocessing, sys, torch, toy
multiprocessing.set_start_method("fork")  # a process that imports toy.py itself has the plain network
world, plain = int(sys.argv.pop()), toy.network
def network(name):
    net, noise = plain(name), torch.Generator().manual_seed(world)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1 + 1e-3 * torch.randn(p.shape, generator=noise))
    return net
toy.network = network
toy.main()
"""


def live(world, number):
    """Run the study of one world in this folder, own/summary.json at the end."""
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        (world / name).parent.mkdir(parents=True, exist_ok=True)
        copyfile(ROOT / name, world / name)
    steps = {
        "toy": ([sys.executable, "-c", TRAIN, str(number)], True),
        "make": (["make", "all", f"PYTHON={sys.executable}"], True),
        "check": (["make", "check", f"PYTHON={sys.executable}"], False),
        "plot": ([sys.executable, "plot.py", "--to", "own", "--readme", "own/README.md"], True),
    }
    for name, (command, check) in steps.items():
        with open(world / f"{name}.txt", "w", encoding="utf-8") as log:
            subprocess.run(command, cwd=world, stdout=log, stderr=subprocess.STDOUT, check=check)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="worlds are made in it")
    parser.add_argument("--worlds", type=int, default=3, metavar="N", help="how many (%(default)s)")
    args = parser.parse_args()

    tests, failed = {}, {}
    for number in range(1, args.worlds + 1):
        world = args.folder.resolve() / str(number)
        summary = world / "own" / "summary.json"
        if not summary.exists():
            live(world, number)
        for row in json.loads(summary.read_text(encoding="utf-8"))["rows"]:
            what = row["model"], row["method"], row["upsampling"], f"{row['labels']:g}"
            tests.setdefault(what, []).append(row["test"][0])
        for line in (world / "check.txt").read_text(encoding="utf-8").splitlines():
            if line.startswith("FAILED"):
                failed.setdefault(line.split()[1].split("::")[1], []).append(number)

    print("| encoder | method | upsampling | labels a class | mean | standard deviation | lowest | highest |\n" + "|---" * 8 + "|")
    for what, found in tests.items():
        numbers = np.mean(found), np.std(found, ddof=1), min(found), max(found)
        print(f"| {' | '.join(what)} | {' | '.join(f'{n:.3f}' for n in numbers)} |")
    print(f"\nmean standard deviation {np.mean([np.std(found, ddof=1) for found in tests.values()]):.4f}")
    for claim, worlds in failed.items():
        print(f"{claim} fails in {len(worlds)} of {args.worlds}: {worlds}")


if __name__ == "__main__":
    main()
