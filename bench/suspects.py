"""How many labels that were made wrong --suspects of linear_probe.py names, beside cleanlab on the same probabilities.

    REAL_DATA=FOLDER python bench/suspects.py     # 10 min on a busy core: the table below

A share of all labels, of every split, is changed to another class at random; then the penalty is chosen and the folds are cut as
the script does it, from the labels as they now are. Means of 3 draws. n are the labels changed; found the share of them that is
among the first n named, which is precision and recall at once (where fewer are named, precision is higher by n / named), and the
share that is named at all; true class how often the class that is called likely then is the true one. cleanlab:
find_label_issues(filter_by="confident_learning") ranked by self-confidence. ranking: no question of who is a suspect, but the
images of the lowest self-confidence, n and as many as we name. Without changes all that is named is counted, in vain or because a
label is wrong. The table is of folds whose fits end at 1e-9 of the loss; of 2 draws, ending at CHANGE moved what is found by .02 at
most and what is named by 2. $REAL_DATA holds sports/, birds/ and fruits360/, of which every fourth frame is taken; toy is that of toy.py.

| data | labels | changed, n | named | found: first n | all | true class | cleanlab names | first n | all | ranking: n | as many |
|---|---|---|---|---|---|---|---|---|---|---|---|
| sports | 1,400 | 0%, 0 | 56 | | | | 50 | | | | |
| sports | 1,400 | 2%, 28 | 88 | 0.55 | 0.55 | 0.89 | 78 | 0.55 | 0.55 | 0.76 | 0.95 |
| sports | 1,400 | 5%, 70 | 128 | 0.58 | 0.58 | 0.91 | 111 | 0.58 | 0.58 | 0.80 | 0.95 |
| sports | 1,400 | 10%, 140 | 194 | 0.61 | 0.61 | 0.84 | 170 | 0.61 | 0.61 | 0.85 | 0.94 |
| birds | 660 | 0%, 0 | 27 | | | | 20 | | | | |
| birds | 660 | 2%, 13 | 40 | 0.59 | 0.59 | 0.93 | 28 | 0.59 | 0.59 | 0.77 | 1.00 |
| birds | 660 | 5%, 33 | 89 | 0.70 | 0.71 | 0.80 | 58 | 0.70 | 0.71 | 0.85 | 0.99 |
| birds | 660 | 10%, 66 | 239 | 0.78 | 0.82 | 0.70 | 144 | 0.78 | 0.82 | 0.86 | 1.00 |
| fruits360 | 1,900 | 0%, 0 | 6 | | | | 6 | | | | |
| fruits360 | 1,900 | 2%, 38 | 36 | 0.86 | 0.86 | 1.00 | 36 | 0.86 | 0.86 | 0.96 | 0.96 |
| fruits360 | 1,900 | 5%, 95 | 70 | 0.68 | 0.68 | 0.99 | 70 | 0.68 | 0.68 | 0.97 | 0.97 |
| fruits360 | 1,900 | 10%, 190 | 145 | 0.68 | 0.68 | 0.98 | 142 | 0.68 | 0.68 | 0.97 | 0.97 |
| toy | 1,920 | 0%, 0 | 81 | | | | 81 | | | | |
| toy | 1,920 | 2%, 38 | 99 | 0.70 | 0.71 | 0.96 | 99 | 0.70 | 0.71 | 0.89 | 0.99 |
| toy | 1,920 | 5%, 96 | 140 | 0.67 | 0.68 | 0.94 | 140 | 0.67 | 0.68 | 0.92 | 0.98 |
| toy | 1,920 | 10%, 192 | 229 | 0.73 | 0.73 | 0.94 | 229 | 0.73 | 0.73 | 0.93 | 0.97 |
"""

import argparse
import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import at_least, load_data, load_model
from linear_probe import all_in_folds, cross_validated, find_suspects, fit_probe, held_out_runs

SETS = (("sports", "mobilenet_v2", 1), ("birds", "mobilenet_v2", 1), ("fruits360", "mobilenet_v2", 4), ("toy", "toy-RN", 1))
RATES = (0.0, 0.02, 0.05, 0.1)


def found(named, wrong, n):
    """The shares of the n `wrong` labels (N,) among the first n of those named and among all of them."""
    return [wrong[named[:n]].sum() / max(1, n), wrong[named].sum() / max(1, n)]


def trial(data, images, x, true, model, rate, seed):
    """A row of numbers: how many we name, what of it is found and named as what it is; the same of cleanlab; and of the ranking."""
    # labels are changed, each split keeps its share
    rng, y, n = np.random.default_rng(seed), true.clone(), round(rate * len(true))
    for i in rng.permutation(len(true))[:n]:
        y[i] = (y[i] + rng.integers(1, len(data.classes))) % len(data.classes)
    parts = dict(zip(images, y.split([len(i) for i in images.values()])))
    images = {split: replace(part, labels=parts[split]) for split, part in images.items()}

    # what the script does
    mean, scale = model.centre_and_spread(x["train"])
    runs = held_out_runs(images, x, parts, 0)
    *_, (chosen, *_) = fit_probe(x["train"], parts["train"], runs, mean, scale, len(data.classes), balance=False)
    _, fold = all_in_folds(data, images, y)
    together = (torch.cat([*x.values()]) - mean) / scale
    p, judged = cross_validated(together, y, torch.from_numpy(fold), chosen["l2"], len(data.classes))
    known = judged.nonzero()[:, 0]
    rows, likely = find_suspects(p[known], y[known])

    # against the truth
    wrong = (y != true)[known].numpy()
    hit = torch.from_numpy(wrong)[rows]
    right = (likely == true[known][rows])[hit].double().mean().item()
    labels, probabilities = y[known].numpy(), p[known].double().numpy()
    probabilities /= probabilities.sum(1, keepdims=True)
    theirs = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", filter_by="confident_learning", n_jobs=1)
    ranked = get_label_quality_scores(labels, probabilities, method="self_confidence").argsort()[: max(n, len(rows))]
    ours = [len(rows), *found(rows.numpy(), wrong, n), right]
    return [*ours, len(theirs), *found(theirs, wrong, n), *found(ranked, wrong, n)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=at_least(1), default=3, help="draws of the labels that are changed (%(default)s)")
    parser.add_argument("--data", nargs="+", default=[name for name, *_ in SETS], help="(%(default)s)")
    args = parser.parse_args()

    print(
        "| data | labels | changed, n | named | found: first n | all | true class | cleanlab names | first n | all | ranking: n | as many |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for name, encoder, step in SETS:
        if name not in args.data:
            continue
        data = load_data(name if name == "toy" else f"{os.environ['REAL_DATA']}/{name}")
        model = load_model(encoder, "cpu", features="penultimate")
        with contextlib.redirect_stdout(None):
            images = {split: part.take(slice(None, None, step)) for split, part in data.images(model.view).items()}
        x = {split: model.features(part)[0] for split, part in images.items()}
        true = torch.cat([part.labels for part in images.values()])
        for rate in RATES:
            row = np.mean([trial(data, images, x, true, model, rate, seed) for seed in range(args.repeats if rate else 1)], 0)
            said = [f"{v:.0f}" if column in (0, 4) else f"{v:.2f}" if rate else "" for column, v in enumerate(row)]
            print(f"| {name} | {len(true):,} | {rate:.0%}, {round(rate * len(true))} | {' | '.join(said)} |", flush=True)


if __name__ == "__main__":
    main()
