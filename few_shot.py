"""Few-shot: how many labels do I need? Test accuracy against labels per class, several methods, several draws of the labels.

    python few_shot.py                                                   # the toy world: .668 (1 label) to .756 (all) in 8 s
    python few_shot.py --data fruits360 --model RN101 --shots 1 2 4 8 16 --seeds 5

What is reported for k labels a class used k labels a class: no validation set, nothing chosen on test; every setting
below is a constant, found on held-out images of the toy world and of four real data sets. Copy this file and common.py
to use it elsewhere.

    x    features of unit length: (S, n, D) of the S draws of one k, (N, D) of the test images
    y    (n,) labels, the same for each draw, because each takes equally many of a class
    z    (C, D) unit-length class embeddings of the captions, which are the zero-shot weights
"""

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F

from common import (
    add_flags,
    at_least,
    class_bootstrap,
    class_embeddings,
    counted,
    default_model,
    evaluate,
    every_class,
    fail,
    features,
    load_data,
    load_images,
    load_model,
    print_setup,
    progress,
    read_templates,
    write_result,
)

L2 = 1e-4  # of `linear`: held-out accuracy at most .025 below that of the best of 1e-2 ... 1e-7, for each k from 1 to 16
PULL = 0.3  # of `text_init` at k = 1; it fades with k ** FADE
FADE = 1.5  # between a prior's 1 and the 2 of ProLIP
ALPHA, BETA = 1.0, 5.5  # of `tip`, its paper's


def draw(labels, k, seed):
    """Sorted rows of k images of each class, all of a class that has fewer; more shots contain the fewer.

    One permutation a class and seed, of its images in path order, and the first k of it.
    """
    rows = []
    for c in np.unique(labels):
        mine = np.flatnonzero(labels == c)
        rows.append(np.random.default_rng([seed, c]).permutation(mine)[:k])
    return np.sort(np.concatenate(rows))


def minimise(loss, *start):
    """Parameters that minimise loss(*parameters), by L-BFGS."""
    parameters = [p.clone().requires_grad_() for p in start]
    optimiser = torch.optim.LBFGS(parameters, max_iter=300, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        value = loss(*parameters)
        value.backward()
        return value

    optimiser.step(closure)
    return [p.detach() for p in parameters]


def cross_entropy(logits, y):
    """Mean over the images of each draw, sum over the draws, which thereby stay independent. logits (S, n, C), y (n,)."""
    return F.cross_entropy(logits.flatten(0, 1), y.repeat(len(logits)), reduction="sum") / len(y)


def span(*vectors):
    """Orthonormal basis (S, D, m) of all vectors (S, m, D) of a draw, or None where m >= D and nothing can be saved.

    Weights that start in it stay in it, because every gradient lies in it (with a penalty alone: the representer theorem).
    """
    a = torch.cat(vectors, 1).transpose(1, 2)
    if a.shape[2] >= a.shape[1]:
        return None
    return torch.linalg.qr(a.cpu() if a.device.type == "mps" else a).Q.to(a.device)  # mps has none, or a very slow one


def linear(x, y, x_test, classes, l2=L2):
    """Logits (S, N, C) of a linear layer that knows nothing of captions: mean cross-entropy + l2/2 |W|^2, from zero.

    Features are centred on the training images of their draw: those of an encoder share a large common part.
    """
    mean = x.mean(1, keepdim=True)
    x = F.normalize(x - mean, dim=2)
    basis = span(x)
    small = x if basis is None else x @ basis  # (S, n, m)

    def loss(w, b):
        return cross_entropy(small @ w + b, y) + l2 / 2 * w.square().sum()

    w, b = minimise(loss, x.new_zeros(len(x), small.shape[2], classes), x.new_zeros(len(x), 1, classes))
    w = w if basis is None else basis @ w
    return torch.stack([F.normalize(x_test - m, dim=1) @ v + c for m, v, c in zip(mean, w, b)])


def text_init(x, y, x_test, z, scale, pull=None):
    """Logits (S, N, C) of a cosine classifier that starts from the captions and is pulled back to them.

    Weights are used at unit length and multiplied by CLIP's logit scale, as in zero-shot. The pull is
    pull/2 |scale (w - z)|^2, mean over classes: in logits, so that it means the same for any scale and number of classes.
    Without labels to speak of it must dominate, with many it must not, so it fades with the labels a class has (ProLIP,
    Fahes et al. 2024, fades theirs with the square).
    """
    pull = PULL / (len(y) / len(z)) ** FADE if pull is None else pull
    z = z.expand(len(x), -1, -1)
    basis = span(x, z)
    small, start = (x, z) if basis is None else (x @ basis, z @ basis)

    def loss(w):
        back = (scale * (w - start)).square().sum((0, 2)).mean()
        return cross_entropy(scale * small @ F.normalize(w, dim=2).transpose(1, 2), y) + pull / 2 * back

    (w,) = minimise(loss, start)
    w = w if basis is None else w @ basis.transpose(1, 2)
    return scale * x_test @ F.normalize(w, dim=2).transpose(1, 2)


def tip(x, y, x_test, z, scale, alpha=ALPHA, beta=BETA):
    """Logits (S, N, C) of Tip-Adapter without training (Zhang et al. 2022): zero-shot + alpha exp(-beta (1 - cosine)) votes."""
    votes = F.one_hot(y, len(z)).to(x.dtype)  # (n, C)
    cached = [torch.cat([torch.exp(beta * (t @ s.T - 1)) @ votes for t in x_test.split(2048)]) for s in x]
    return scale * x_test @ z.T + alpha * torch.stack(cached)


def class_mean(x, y, x_test, classes):
    """Logits (S, N, C): cosine to the mean of each class."""
    means = x.new_zeros(len(x), classes, x.shape[2]).index_add_(1, y, x)
    return x_test @ F.normalize(means, dim=2).transpose(1, 2)


def print_table(table, labels, draws, everything):
    """A line a method, a column a k: mean±standard deviation of the accuracies, alone where there is but one draw.

    labels {k: images} and draws {k: different draws}; once a k takes `everything`, larger ones would repeat it.
    """
    columns = [k for i, k in enumerate(labels) if i == 0 or labels[k] > list(labels.values())[i - 1]]
    print(f"test accuracy, mean±standard deviation over {counted(max(draws.values()), 'draw')} of the labels")
    print("labels a class" + "".join(f"{'all' if labels[k] == everything else k:>12}" for k in columns))
    for method, row in table.items():
        cells = (f"{row[k]['mean']:.3f}" + (f"±{row[k]['std']:.3f}" if draws[k] > 1 else "") for k in columns)
        print(f"{method:14}" + "".join(f"{cell:>12}" for cell in cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "data model weights act prompts type classnames seed device precision batch out")
    shots = [1, 2, 4, 8, 16, 32, 64, 128]
    parser.add_argument("--shots", nargs="+", type=at_least(1), default=shots, metavar="K", help="labels a class (%(default)s)")
    parser.add_argument("--seeds", type=at_least(1), default=5, metavar="N", help="draws of the labels, from --seed on (%(default)s)")
    args = parser.parse_args()
    started = time.time()

    data = load_data(args.data, args.classnames, args.type, args.seed)
    given, (args.prompts, chosen_with) = args.prompts, read_templates(args.prompts, data.type)
    args.type, args.model, args.shots = data.type, args.model or default_model(args.data), sorted(set(args.shots))
    model = load_model(args.model, args.device, args.weights, args.precision, args.act)
    if given and not model.encode_text:
        fail(f"--prompts: {model.name} has no text side")
    images = {split: load_images(data, split, model.size) for split in ("train", "test")}
    every_class(images["train"], data)
    x_train, x_test = (F.normalize(features(model, i, args.batch)[0], dim=1).to(model.device) for i in images.values())
    labels, y_test = images["train"].labels, images["test"].labels.to(model.device)
    classes = len(data.classes)
    print_setup(data, model, images)
    sizes = np.bincount(labels)
    if short := [f"{(sizes < k).sum()} of {classes} at k = {k}" for k in args.shots if k > sizes.min()]:
        print(f"note: classes with fewer than k images give all they have: {', '.join(short)}; the smallest has {sizes.min()}")

    methods = {
        "class-mean": lambda x, y: class_mean(x, y, x_test, classes),
        "linear": lambda x, y: linear(x, y, x_test, classes),
    }
    metrics = {"chance": 1 / classes, "draw": draw.__doc__.strip(), "labels": {}, "draws": {}, "short_classes": {}}
    if model.encode_text:
        z = class_embeddings(model, data.words, args.prompts, data.type).to(model.device)
        scale = model.logit_scale
        methods["tip"] = lambda x, y: tip(x, y, x_test, z, scale)
        methods["text-init"] = lambda x, y: text_init(x, y, x_test, z, scale)
        m = evaluate((x_test @ z.T).cpu(), images["test"].labels, data.classes)
        print(f"{'zero-shot' if not chosen_with else 'chosen prompts':14}{m['top1']:12.3f}", end="   ")
        print(f"95 % interval {m['top1_ci95'][0]:.3f} to {m['top1_ci95'][1]:.3f} over images", end=", ")
        print("no label used" if not chosen_with else "its labels are in tip and text-init too")
        # captions chosen with labels give no zero-shot number
        metrics |= {
            ("chosen_prompts" if chosen_with else "zero_shot") + key.removeprefix("top1"): v for key, v in m.items() if "top1" in key
        }

    table = {method: {} for method in methods}
    used, done, shares = set(), {}, []
    for k in progress(args.shots, f"{model.name} few-shot", "k"):
        draws = [draw(labels.numpy(), k, args.seed + i) for i in range(args.seeds)]
        rows, which = np.unique(draws, axis=0, return_inverse=True)  # with all labels there is but one
        metrics["draws"][k], metrics["labels"][k] = rows.shape
        metrics["short_classes"][k] = int((sizes < k).sum())
        used.update(rows.flat)
        x, y = x_train[torch.from_numpy(rows)], labels[rows[0]].to(model.device)
        for method, fit in methods.items():
            key = method, rows.tobytes()
            if key not in done:  # all seeds of one k as one problem
                done[key] = (fit(x, y).argmax(2) == y_test).cpu().numpy()[which.ravel()]  # (seeds, N)
            right = done[key]
            values = right.mean(1)
            table[method][k] = {
                "mean": values.mean().item(),
                "std": (values.std(ddof=1).item() if len(rows) > 1 else 0.0) if args.seeds > 1 else None,
                "values": values.tolist(),
                "ci95_class": class_bootstrap(right.mean(0), images["test"].labels),
            }
            shares.append(np.float32(right.mean(0)))
    print_table(table, metrics["labels"], metrics["draws"], len(labels))
    if args.out:
        arrays = {"right": np.reshape(shares, (len(args.shots), len(methods), -1))}  # of the draws, the share that named the image right
        labels_used = max(len(used), chosen_with)
        write_result(args.out, args, data, model, images, metrics | table, started, labels_used=labels_used, arrays=arrays)


if __name__ == "__main__":
    main()
