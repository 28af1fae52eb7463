"""The sweep of linear_probe.py against a loop over scikit-learn's LogisticRegression, on the same features and penalties.

    python bench/linear_probe.py

Features are drawn: 50 classes of 30 training and 20 held-out images, 256 wide. Both start each penalty from the fit before.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from linear_probe import PENALTIES, sweep

CLASSES, TRAIN, HELD, WIDTH = 50, 30, 20, 256


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    warnings.filterwarnings("ignore")
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, WIDTH, generator=rng) / 4

    def images(n):
        y = torch.arange(CLASSES).repeat_interleave(n)
        return centres[y] + torch.randn(len(y), WIDTH, generator=rng), y

    (x, y), (x_val, y_val) = images(TRAIN), images(HELD)
    start = time.perf_counter()
    fits = sweep([(x, y, x_val, y_val)], CLASSES, PENALTIES)
    ours = time.perf_counter() - start

    start = time.perf_counter()
    model, theirs = LogisticRegression(max_iter=200, warm_start=True), []
    for l2 in PENALTIES[: len(fits)]:
        model.set_params(C=1 / (l2 * len(y))).fit(x.numpy(), y.numpy())
        theirs.append(model.score(x_val.numpy(), y_val.numpy()))
    loop = time.perf_counter() - start

    print(f"{len(fits)} of {len(PENALTIES)} penalties: {ours:.2f} s, best {max(f['val'] for f in fits):.3f} on held-out images", end="; ")
    print(f"scikit-learn on the same {loop:.2f} s, best {max(theirs):.3f}: {loop / ours:.1f} times as fast")


if __name__ == "__main__":
    main()
