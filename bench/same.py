"""Whether two results/ folders hold the same numbers, bit for bit: the net under a change that should change none.

    python bench/same.py before/results after/results
    python bench/same.py before/results after/results --renamed metrics.test=metrics.candidates --dropped npz.shown

Times, speeds, versions and whatever names a file of weights by its hash may differ; all else must be equal, and is named where it is not.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np

# what two runs of the same code differ in, too; sha256 of the generator is that of a file whose header had no fixed order, the checksum
# is of a whole record, times included
FREE = ("seconds", "busy", "code", "seconds_per_step", "threads", "images_per_second", "sha256", "checksum")


def flat(value, name=""):
    """{dotted name: number, string or None} of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items and not isinstance(value, (dict, list)):
        return {name: value}
    return {key: v for k, inner in items for key, v in flat(inner, f"{name}.{k}".lstrip(".")).items()}


def contents(folder):
    """{file: {dotted name: value}} of every record and array below a folder."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            found[name] = {k: v for k, v in flat(json.loads(path.read_text(encoding="utf-8"))).items() if not {*FREE} & {*k.split(".")}}
        elif path.suffix == ".npz":
            found[name] = {f"npz.{k}": a for k, a in np.load(path).items()}
        elif path.suffix == ".csv":
            found[name] = {"text": path.read_text(encoding="utf-8")}
    return found


def equal(a, b):
    if isinstance(a, np.ndarray):
        return a.size == b.size and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument(
        "--renamed", nargs="*", default=[], metavar="OLD=NEW", help="keys of the first that are called otherwise in the second"
    )
    parser.add_argument("--dropped", nargs="*", default=[], metavar="KEY", help="keys of the first that the second need not have")
    args = parser.parse_args()
    before, after = contents(args.before), contents(args.after)
    values = wrong = 0
    for name, old in before.items():
        if name not in after:
            print(f"{name}: missing")
            wrong += 1
            continue
        for key, value in old.items():
            new = key
            for pair in args.renamed:
                a, b = pair.split("=")
                new = b + new[len(a) :] if new == a or new.startswith(f"{a}.") else new
            if any(key == d or key.startswith(f"{d}.") for d in args.dropped):
                continue
            values += 1
            if new not in after[name] or not equal(value, after[name][new]):
                wrong += 1
                print(f"{name}: {key}: {str(value)[:60]} -> {str(after[name].get(new, 'missing'))[:60]}")
    print(f"{len(before)} files, {values:,} values and arrays, {wrong} differ")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
