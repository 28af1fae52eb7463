"""Linear probe: logistic regression on frozen features, its L2 penalty chosen on held-out images, as in CLIP (Radford et al. 2021).

    python linear_probe.py                                               # the toy world: .771 in 8 s
    python linear_probe.py --data fruits360 --model resnet101 --save head.safetensors

CLIP and ImageNet models alike. Features are those before the last layer; of CLIP that is before its projection into the
space of captions, as in its paper: held-out images gave .808 against .797 (toy-ViT) and .860 against .866 (toy-RN). It also
says which test images are copies of training images, for which no encoder can be praised. Copy this file and
common.py to use it elsewhere.
"""

import argparse
import csv
from pathlib import Path

import torch
import torch.nn.functional as F

from common import (
    about,
    add_flags,
    atomic,
    counted,
    ending,
    evaluate,
    find_copies,
    load,
    progress,
    report,
    save_weights,
    some,
    wilson,
)

PENALTIES = [10 ** (e / 2) for e in range(2, -13, -1)]  # 10 to 1e-6 in half decades, for features of unit variance
ENOUGH, MOST = 1000, 5  # held-out images that choose well; with fewer, up to 5 runs of others, because few choose at random
FALLS = 3  # penalties in a row below the best so far end the sweep: 80 of 82 sets chose the same
BLOCK = 2**24  # logits at a time: 64 MiB, however many images and classes there are
SAMPLE = 1000  # training images that tell how spread logits are
FEW = 30  # images below which an accuracy says nothing


def loss_and_gradient(x, y, l2, weight, bias):
    """Mean cross-entropy + l2/2 |W|^2, and its gradient for weight (C, D) and bias (C,). x (N, D), y (N,).

    A block of images at a time and written out, because logits (N, C) and what autograd keeps of them can outgrow any memory.
    """
    loss, to_weight, to_bias = l2 / 2 * weight.square().sum(), l2 * weight, torch.zeros_like(bias)
    rows = max(1, BLOCK // len(bias))
    for part, labels in zip(x.split(rows), y.split(rows)):
        error = torch.addmm(bias, part, weight.T).log_softmax(1)  # (rows, C)
        own = torch.arange(len(labels), device=y.device), labels
        loss -= error[own].sum() / len(y)
        error.exp_()[own] -= 1
        to_weight.addmm_(error.T, part, alpha=1 / len(y))
        to_bias += error.sum(0) / len(y)
    return loss, to_weight, to_bias


def logistic_regression(x, y, l2, weight, bias, steps=1000):
    """Minimise mean cross-entropy + l2/2 |W|^2 by full-batch L-BFGS from weight (C, D), bias (C,); the bias is free.

    x (N, D), y (N,). In scikit-learn's terms C = 1 / (l2 N).
    """
    weight, bias = weight.clone(), bias.clone()
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=steps, tolerance_grad=1e-6, history_size=10, line_search_fn="strong_wolfe")

    @torch.no_grad()
    def closure():
        loss, weight.grad, bias.grad = loss_and_gradient(x, y, l2, weight, bias)
        return loss

    optimiser.step(closure)
    return weight, bias


def equal_classes(y, weight, bias):
    """A head fitted to labels y, for classes that are met equally often: log frequencies go out of the bias (Menon et al. 2021)."""
    counts = torch.bincount(y, minlength=len(bias)).to(bias)
    return weight, bias - (counts / counts.mean()).log()


def accuracy(x, y, weight, bias):
    """The share of images x (N, D) that are named right, a block at a time."""
    predicted = [torch.addmm(bias, part, weight.T).argmax(1) for part in x.split(max(1, BLOCK // len(bias)))]
    return (torch.cat(predicted) == y).cpu().double().mean().item()  # mps has no double


def sweep(runs, classes, penalties):
    """Fit with each penalty, each time from the fit before, the largest first: [{"l2", "frequencies", "train", "val", "head"}].

    `runs` are [(x, y, x_val, y_val)]; the accuracies are means over them, the head (weight, bias) is that of the first. Where
    classes are unequal, held-out images also say whether the head keeps how frequent they were in training; of equals it does.
    Small penalties get no further than 200 steps each, which changes what is chosen less than other held-out images do.
    """
    fitted = [(x.new_zeros(classes, x.shape[1]), x.new_zeros(classes)) for x, *_ in runs]
    fits = []
    for l2 in penalties:
        fitted = [logistic_regression(x, y, l2, *head, steps=200) for (x, y, *_), head in zip(runs, fitted)]
        equal = [equal_classes(y, *head) for (_, y, *_), head in zip(runs, fitted)]
        val = [sum(accuracy(x, y, *head) for (*_, x, y), head in zip(runs, heads)) / len(runs) for heads in (fitted, equal)]
        heads = equal if val[1] > val[0] + 1e-9 else fitted
        train = sum(accuracy(x, y, *head) for (x, y, *_), head in zip(runs, heads)) / len(runs)
        fits.append({"l2": l2, "frequencies": heads is fitted, "train": train, "val": max(val), "head": heads[0]})
        best = max(f["val"] for f in fits)
        if len(fits) > FALLS and all(f["val"] < best - 1e-9 for f in fits[-FALLS:]):
            break
    return fits


def class_means(x, y, classes):
    """Unit-length (C, D): the normalised mean of the normalised features of each class."""
    x = F.normalize(x, dim=1)
    return F.normalize(x.new_zeros(classes, x.shape[1]).index_add_(0, y, x), dim=1)


def write_copies(pairs, test, train, path):
    """CSV of (test file, training file, similarity, mirrored), paths below the data folder; only a header where there are none."""
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["test", "train", "similarity", "mirrored", "same_label"])
        for p in pairs:
            same, mirrored = ("yes" if p[key] else "no" for key in ("same_label", "mirrored"))
            table.writerow([test[p["test"]], train[p["train"]], f"{p['similarity']:.4f}", mirrored, same])


def nearest_mean(x, y, weight, bias):
    """The nearest class mean as a head (C, D), (C,) for features x (N, D) as they come, its logits as spread as those of another head.

    The length of an image's features changes nothing in which class has the largest product. Logits that were less spread would
    give other probabilities of the same classes.
    """
    means = class_means(x, y, len(bias))
    logits, theirs = x[:SAMPLE] @ means.T, torch.addmm(bias, x[:SAMPLE], weight.T)
    spread, wanted = ((t - t.mean(1, keepdim=True)).square().mean().sqrt() for t in (logits, theirs))
    return means * (wanted / spread.clamp(min=1e-12)), torch.zeros_like(bias)


# ---- what main() is cut into ------------------------------------------------------------------------------------------


def held_out_runs(images, x, y, seed):
    """[(x, y, x_val, y_val)] to choose by: val, or up to MOST runs of neighbouring training files of each class, ENOUGH images in all."""
    if "val" in images:
        return [(x["train"], y["train"], x["val"], y["val"])]
    train = images["train"]
    masks = [train.block(seed)]
    masks += [train.block(seed + i) for i in range(1, min(MOST, ENOUGH // masks[0].sum()))]
    masks = [torch.from_numpy(held).to(x["train"].device) for held in masks]
    return [(x["train"][~held], y["train"][~held], x["train"][held], y["train"][held]) for held in masks]


def fit_probe(x, y, runs, mean, scale, classes):
    """(heads, fits, tied): logistic regression on x (N, D), y (N,) with the penalty that is best on the held-out `runs`.

    heads are {"head": (weight, bias) of all of train, "held_out": the same of the first run, which has not seen its held-out images},
    for features as the encoder gives them; fits what `sweep` tried; tied what of it was best, the first of which is chosen.
    """
    scaled = [((a - mean) / scale, b, (c - mean) / scale, d) for a, b, c, d in runs]
    fits = sweep(scaled, classes, progress(PENALTIES, "penalties", "fit"))
    best = max(f["val"] for f in fits)
    tied = [f for f in fits if f["val"] > best - 1e-9]  # of equals the largest penalty; means round
    chosen = tied[0]
    head = logistic_regression((x - mean) / scale, y, chosen["l2"], *chosen["head"])
    heads = {"head": head if chosen["frequencies"] else equal_classes(y, *head), "held_out": chosen["head"]}
    return {name: (w / scale, b - w @ mean / scale) for name, (w, b) in heads.items()}, fits, tied


def search_copies(images, right, device, listed):
    """Metrics of the test images that are copies of training images, and of what is left without them; says which, and writes `listed`.

    right (N,): which test images the probe names right.
    """
    test, train = images["test"], images["train"]
    pairs, look_alike = find_copies(test, train, device)
    copies = torch.zeros(len(test), dtype=torch.bool)
    copies[[p["test"] for p in pairs]] = True
    left = right[~copies]
    wrong = [p for p in pairs if not p["same_label"]]
    metrics = {
        "near_copies": copies.double().mean().item(),
        "copies_of_another_label": len(wrong),
        "look_alike": look_alike.double().mean().item(),
        "test_without_near_copies": left.double().mean().item() if len(left) >= FEW else None,
    }

    def named(pairs):
        return some([f"{test.paths[p['test']]} = {train.paths[p['train']]}" for p in pairs], 3)

    where = f": see {listed}" if listed and pairs else f": {named(pairs)}" if pairs else ""
    print(f"copies          {metrics['near_copies']:.3f}   of the test images are copies of a training image{where}")
    if wrong:
        print(f"note: {counted(len(wrong), 'test image')} with a copy in another class of train, a wrong label: {named(wrong)}")
    print(f"look alike      {metrics['look_alike']:.3f}   of the test images roughly resemble a training image, copy or not")
    without = f"{left.double().mean():.3f}" if len(left) >= FEW else "too few left"
    print(f"without them    {without}   {counted(len(left), 'image')}")
    if listed:
        write_copies(pairs, test.paths, train.paths, listed)
    return metrics


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "data model weights act prompts type classnames groups seed device precision batch out")
    parser.add_argument("--features", choices=("penultimate", "projected"), default="penultimate", help="of CLIP (%(default)s)")
    save = "keep the head here, with its class names (not kept)"
    parser.add_argument("--save", type=ending(".safetensors"), metavar="FILE.safetensors", help=save)
    args = parser.parse_args()
    if args.prompts and not args.save:
        parser.error("--prompts only go into the --save file, for those who start from it; the probe needs none")
    return args


def main():
    args = arguments()
    data, model = load(args, args.features)
    images = data.images(model.size)
    x, y = {}, {}
    for split in images:
        x[split], y[split] = model.features(images[split])

    # the penalty is chosen on images that the fits do not see; features are centred and of unit variance over all, so that it
    # means the same for every encoder
    mean, scale = model.centre_and_spread(x["train"])
    runs = held_out_runs(images, x, y, args.seed)
    heads, fits, (chosen, *tied) = fit_probe(x["train"], y["train"], runs, mean, scale, len(data.classes))
    best = max(f["val"] for f in fits)

    # the rival that chooses nothing: where held-out images name it as good or better, it is the probe, being the plainer one
    whole = x["train"], y["train"], None, None
    rivals = [nearest_mean(a, b, *heads["head"]) for a, b, *_ in (*runs, whole)]
    held = [accuracy(c, d, *rival) for (*_, c, d), rival in zip(runs, rivals)]
    rival, class_mean = sum(held) / len(held), accuracy(x["test"], y["test"], *rivals[-1])
    if nearest := rival > best - 1e-9:
        heads = {"head": rivals[-1], "held_out": rivals[0]}
    weight, bias = heads["head"]

    source = "images of the val split" if "val" in images else "held-out training images"
    times = f", mean of {len(runs)} such runs" if len(runs) > 1 else ""
    as_good = "; as good: " + some([f"{f['l2']:.0e}" for f in tied]) if tied else ""
    edge = "; the end of the sweep" if chosen["l2"] in (PENALTIES[0], PENALTIES[-1]) else ""
    print(f"penalty         {chosen['l2']:.0e}   best of {len(fits)} on {len(runs[0][3]):,} {source}{times}{as_good}{edge}")
    if not (nearest or chosen["frequencies"]):
        print("frequencies     left out: held-out images are named better as if all classes were equally frequent")
    metrics = {"train": accuracy(x["train"], y["train"], weight, bias), "val": max(best, rival)}
    for split, total in (("train", len(y["train"])), ("val", len(runs[0][3]))):
        metrics[f"{split}_ci95"] = wilson(metrics[split], total)
        print("{:15} {:.3f}   95 % interval {:.3f} to {:.3f}".format(split, metrics[split], *metrics[f"{split}_ci95"]))
    taken = "the nearest class mean is taken for the probe" if nearest else "the probe stays"
    print(f"class mean      {class_mean:.3f}   on test, nearest class mean of the same features; held-out images", end=" ")
    print(f"give it {rival:.3f} and logistic regression {best:.3f}: {taken}")

    logits = torch.addmm(bias, x["test"], weight.T)
    listed = Path(args.out).with_name(f"{Path(args.out).stem}-copies.csv") if args.out else None
    metrics |= search_copies(images, (logits.argmax(1) == y["test"]).cpu(), model.device, listed)
    print("all test images")
    metrics |= evaluate(logits, y["test"], data.classes, images["test"].clusters)
    metrics |= {"l2": None if nearest else chosen["l2"], "frequencies": not nearest and chosen["frequencies"]}
    metrics |= {"class_mean": class_mean, "class_mean_val": rival}
    history = [{k: v for k, v in f.items() if k != "head"} for f in fits]
    used = len(y["train"]) + len(y.get("val", ()))
    report(args, data, model, images, metrics, "linear probe", logits, used, history=history)
    if args.save:
        if "val" in images:  # nobody needs it: the first run is all of train
            del heads["held_out"]
        tensors = {f"{name}.{part}": t for name, head in heads.items() for part, t in zip(("weight", "bias"), head)}
        save_weights(args.save, tensors, about(data, model, images, args.seed))
        print(f"saved {args.save}")


if __name__ == "__main__":
    main()
