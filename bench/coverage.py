"""How often the intervals hold, and how often equal encoders are told apart, where the truth is known.

    python bench/coverage.py                 # 10 min: the tables of docs/methods.md
    python bench/coverage.py --repeats 200   # 1 min, rougher

Each class has a difficulty of its own (Beta), which stays while test images are drawn anew; within a class images may come in
clusters, of which some share one fate, as frames of a video do. The second encoder differs from the first on some images.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch

from common import accuracy_interval, at_least, calibrate, measure_calibration, normal_quantile, paired_difference

CLASSES, IMAGES = (2, 5, 24, 100), (48, 200, 480, 2000)
CLUSTERS = ((1, 0.0), (4, 0.6))  # images a cluster, share of clusters with one fate
ACCURACIES = (0.7, 0.95)
WORLDS = 30  # sets of class difficulties that the repeats are spread over
AGREE = 0.7  # share of images on which the second encoder repeats the first
DRAWS, LUCK = 5, 0.5  # of the labels of few_shot.py, and how much a draw moves all logits

UNEQUAL = {"10 and 100": [10, 100], "3 to 300": [3, 10, 30, 100, 300], "2 to 100": [2, 5, 20, 100] * 6, "20": [20] * 24}


def world(rng, classes, images, size, accuracy):
    """labels (N,), clusters (N,) and the accuracy of each class (C,)."""
    labels = np.sort(np.arange(images) % classes)
    within = np.concatenate([np.arange(n) for n in np.bincount(labels)])
    return labels, labels * images + within // size, rng.beta(5 * accuracy, 5 * (1 - accuracy), classes)


def fates(rng, clusters, shared):
    """Uniform numbers (N,), one and the same for the images of a share of the clusters."""
    _, member = np.unique(clusters, return_inverse=True)
    count = member.max() + 1
    together = rng.random(count) < shared
    return np.where(together[member], rng.random(count)[member], rng.random(len(clusters)))


def holds(interval, truth):
    return interval[0] - 1e-12 <= truth <= interval[1] + 1e-12


def two_encoders(rng, classes, images, size, shared, accuracy, repeats):
    """Coverage of the interval of an accuracy, and of the difference of two encoders."""
    hits = np.zeros(2)
    for i in range(repeats):
        if i % max(1, repeats // WORLDS) == 0:
            labels, clusters, skill = world(rng, classes, images, size, accuracy)
            other = skill[::-1]
        first = fates(rng, clusters, shared) < skill[labels]
        second = np.where(fates(rng, clusters, shared) < AGREE, first, fates(rng, clusters, shared) < other[labels])
        truth = skill[labels].mean()
        hits[0] += holds(accuracy_interval(first, labels, clusters), truth)
        gap = (1 - AGREE) * (other[labels].mean() - truth)
        hits[1] += holds(paired_difference(second, first, labels, clusters)["ci95"], gap)
    return hits / repeats


def mean_per_class(rng, sizes, accuracy, repeats):
    """Coverage of the interval of the mean over classes of `sizes` images, and that of top-1 on the same images."""
    labels, hits = np.repeat(np.arange(len(sizes)), sizes), np.zeros(2)
    for i in range(repeats):
        if i % max(1, repeats // WORLDS) == 0:
            skill = rng.beta(5 * accuracy, 5 * (1 - accuracy), len(sizes))
        right = rng.random(len(labels)) < skill[labels]
        hits += [
            holds(accuracy_interval(right, labels, per_class=True), skill.mean()),
            holds(accuracy_interval(right, labels), skill[labels].mean()),
        ]
    return hits / repeats


def few_labels(rng, classes, images, accuracy, repeats):
    """Coverage of the interval over images and draws of the labels, of an accuracy and of its difference to all labels."""
    hits = np.zeros(2)
    for i in range(repeats):
        if i % max(1, repeats // WORLDS) == 0:
            labels, _, skill = world(rng, classes, images, 1, accuracy)
            logit = np.log(np.clip(skill, 0.02, 0.98) / (1 - np.clip(skill, 0.02, 0.98)))
            lucks = LUCK * np.random.default_rng(0).standard_normal((4000, 1))
            truth = (1 / (1 + np.exp(-logit - lucks))).mean(0)[labels].mean()
        luck = LUCK * rng.standard_normal((DRAWS, 1))
        ease = fates(rng, np.arange(images), 0)  # the same image is easy for all draws
        blend = np.where(rng.random((DRAWS, images)) < 0.5, ease, rng.random((DRAWS, images)))
        right = blend < 1 / (1 + np.exp(-logit[labels] - luck))
        whole = ease < np.minimum(skill[labels] + 0.02, 1)
        hits[0] += holds(accuracy_interval(right, labels), truth)
        gap = truth - np.minimum(skill[labels] + 0.02, 1).mean()
        hits[1] += holds(paired_difference(right, whole, labels)["ci95"], gap)
    return hits / repeats


def equal_encoders(rng, encoders, classes, images, size, shared, accuracy, repeats):
    """How often any of several equally good encoders is called behind another one."""
    z, wrong = normal_quantile(math.comb(encoders, 2)), 0
    for i in range(repeats):
        if i % max(1, repeats // WORLDS) == 0:
            labels, clusters, skill = world(rng, classes, images, size, accuracy)
        common = fates(rng, clusters, shared)
        right = [
            np.where(fates(rng, clusters, shared) < AGREE, common, fates(rng, clusters, shared)) < skill[labels] for _ in range(encoders)
        ]
        means = [r.mean() for r in right]
        best = int(np.argmax(means))
        wrong += any(paired_difference(r, right[best], labels, clusters, z)["ci95"][1] < 0 for r in right if r is not right[best])
    return wrong / repeats


def confident(rng, images, classes, temperature):
    """logits (N, C), labels (N,) drawn from softmax(logits / temperature); true probabilities from even to nearly sure."""
    p = rng.dirichlet(np.full(classes, 0.4), images) + 1e-4
    labels = (rng.random(images)[:, None] > (p / p.sum(1, keepdims=True)).cumsum(1)[:, :-1]).sum(1)
    return torch.from_numpy(temperature * np.log(p)).float(), torch.from_numpy(labels)


def sets_of_classes(rng, held, classes, alpha, repeats):
    """Means over studies with `held` images to fit on and 500 to test: T (truth: 2), coverage of either set, and ECE."""
    found = []
    for _ in range(repeats):
        fitted = calibrate(*confident(rng, held, classes, 2.0), alpha, "")
        m = measure_calibration(fitted, *confident(rng, 500, classes, 2.0), range(classes), np.arange(held))
        found.append([m["temperature"], m["lac"]["coverage"], m["aps"]["coverage"], m["ece"], m["ece_before"], m["ece_chance"]])
    return dict(zip(("temperature", "lac", "aps", "error", "before", "chance"), np.mean(found, 0).tolist()))


def settings():
    for classes in CLASSES:
        for images in IMAGES:
            for size, shared in CLUSTERS:
                if images >= 2 * classes * size:
                    yield classes, images, size, shared


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=at_least(10), default=2000, help="simulated studies a row (%(default)s)")
    args = parser.parse_args()
    rng = np.random.default_rng(0)

    print("| classes | test images | images a cluster | accuracy | its interval holds | that of the difference of two |")
    print("|---|---|---|---|---|---|")
    for setting in settings():
        for accuracy in ACCURACIES:
            one, two = two_encoders(rng, *setting, accuracy, args.repeats)
            print(f"| {setting[0]} | {setting[1]} | {setting[2]} | {accuracy} | {one:.3f} | {two:.3f} |", flush=True)

    print("\n| classes | test images | accuracy | few labels, over images and draws | difference to all labels |\n|---|---|---|---|---|")
    for classes, images in ((2, 48), (5, 200), (24, 480), (100, 2000)):
        one, two = few_labels(rng, classes, images, 0.7, args.repeats)
        print(f"| {classes} | {images} | 0.7 | {one:.3f} | {two:.3f} |", flush=True)

    print("\n| encoders, all equally good | classes | test images | images a cluster | one is called behind |\n|---|---|---|---|---|")
    for encoders in (2, 5, 9):
        for classes, images, size, shared in ((2, 48, 1, 0.0), (5, 200, 1, 0.0), (24, 480, 1, 0.0), (24, 480, 4, 0.6), (100, 2000, 1, 0.0)):
            wrong = equal_encoders(rng, encoders, classes, images, size, shared, 0.8, args.repeats)
            print(f"| {encoders} | {classes} | {images} | {size} | {wrong:.3f} |", flush=True)

    print("\n| classes | test images a class | accuracy | mean per class: its interval holds | that of top-1 |\n|---|---|---|---|---|")
    for name, sizes in UNEQUAL.items():
        for accuracy in ACCURACIES:
            one, two = mean_per_class(rng, sizes, accuracy, args.repeats)
            print(f"| {len(sizes)} | {name} | {accuracy} | {one:.3f} | {two:.3f} |", flush=True)

    print("\n| classes | held-out images | wanted | LAC sets hold | APS sets hold | T (truth 2) | ECE | before | by chance |")
    print("|---|---|---|---|---|---|---|---|---|")
    for classes in (2, 5, 24):
        for held in (15, 50, 200, 1000):
            for alpha in (0.1, 0.05) if held > 15 else (0.1,):
                m = sets_of_classes(rng, held, classes, alpha, args.repeats)
                print(f"| {classes} | {held} | {1 - alpha:g} | {m['lac']:.3f} | {m['aps']:.3f} | {m['temperature']:.2f}", end=" ")
                print(f"| {m['error']:.3f} | {m['before']:.3f} | {m['chance']:.3f} |", flush=True)


if __name__ == "__main__":
    main()
