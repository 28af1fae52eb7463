"""Whether anything has changed that every result of a data set depends on: then the stamp, which make compares them with, is new.

    python bench/stamp.py --data toy --stamp results/toy.fingerprint       # rewrites the file only if something changed

A file that make watches by its time cannot be the pictures themselves: there are many, and copies and git keep no times.
"""

import argparse
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import FORMAT, add_flags, counted, digest, load_data, write_json


def depends(data, settings):
    """{what: its state} of all that every result depends on."""
    files = []
    if data.name == "toy":  # whose encoders are trained here; plot.py refuses results of different weights
        files = [(file.name, file.stat()) for file in sorted(Path("weights").glob("*.pt"))]
    return {
        "pictures": data.fingerprint,
        "names of classes": digest([data.words, data.type]),
        "settings": settings,
        "format of results": FORMAT,
        "weights": digest([[name, stat.st_size, stat.st_mtime_ns] for name, stat in files]),
    }


def read(stamp):
    """What was written there; {} where that cannot be read, so that everything has changed."""
    with suppress(ValueError):
        before = json.loads(stamp.read_text(encoding="utf-8"))
        return before if isinstance(before, dict) else {}
    return {}


def made_already(data, stamp):
    """Times in ns of the results of these pictures that were written before there was a stamp; none, where another is of other pictures.

    Of toy the encoders may have been trained anew.
    """
    files = [] if data.name == "toy" else [*stamp.parent.glob(f"*/{data.name}/[!.]*.json")]
    made_of = [read(file).get("data") for file in files]
    same = [isinstance(part, dict) and part.get("fingerprint") == data.fingerprint for part in made_of]
    return [file.stat().st_mtime_ns for file in files] if all(same) else []


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--stamp", required=True, type=Path, metavar="FILE", help="what every result depends on is kept here")
    add_flags(parser, "label-from groups fit")  # a slip of the pen ends make here, before it counts as a change
    parser.add_argument("--settings", default="", metavar="TEXT", help="those of the Makefile")
    args = parser.parse_args()

    data = load_data(args.data, union=True, groups=args.groups, label_from=args.label_from)
    now, first = depends(data, args.settings), not args.stamp.is_file()
    before = {} if first else read(args.stamp)
    if before == now:
        return
    if not first:
        changed = [what for what in now if before.get(what) != now[what]]
        print(f"{data.name}: {', '.join(changed)} changed, every result is made anew")
    write_json(args.stamp, now)
    if first and (times := made_already(data, args.stamp)):
        os.utime(args.stamp, ns=(min(times),) * 2)
        print(f"{data.name}: {counted(len(times), 'result')} of these pictures taken as made")


if __name__ == "__main__":
    main()
