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
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from common import (
    HOLDOUT,
    add_flags,
    atomic,
    blocked_split,
    centre_and_spread,
    clusters,
    counted,
    default_model,
    digest,
    evaluate,
    every_class,
    fail,
    features,
    find_copies,
    hold_out,
    load_data,
    load_model,
    load_splits,
    print_metrics,
    print_setup,
    progress,
    read_templates,
    save_weights,
    some,
    wilson,
    write_result,
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

    The length of an image's features changes nothing in which class has the largest product.
    """
    means = class_means(x, y, len(bias))
    logits, theirs = x[:SAMPLE] @ means.T, torch.addmm(bias, x[:SAMPLE], weight.T)
    spread, wanted = ((t - t.mean(1, keepdim=True)).square().mean().sqrt() for t in (logits, theirs))
    return means * (wanted / spread.clamp(min=1e-12)), torch.zeros_like(bias)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "data model weights act prompts type classnames groups seed device precision batch out")
    parser.add_argument("--features", choices=("penultimate", "projected"), default="penultimate", help="of CLIP (%(default)s)")
    parser.add_argument("--save", metavar="FILE.safetensors", help="keep the head here, with its class names (not kept)")
    args = parser.parse_args()
    started = time.time()
    if args.save and not args.save.endswith(".safetensors"):
        parser.error(f"--save {args.save}: must end in .safetensors")

    data = load_data(args.data, args.classnames, args.type, args.seed, groups=args.groups)
    given, (args.prompts, _) = args.prompts, read_templates(args.prompts, data.type)
    args.type, args.model = data.type, args.model or default_model(args.data)
    model = load_model(args.model, args.device, args.weights, args.precision, args.act, args.features)
    if given and not (model.encode_text and args.save):
        fail("--prompts only go into the --save file of a CLIP model, for those who start from it; the probe needs none")
    images = load_splits(data, model.size)
    every_class(images["train"], data)
    x, y = {}, {}
    for split in images:
        x[split], y[split] = (t.to(model.device) for t in features(model, images[split], args.batch))
    # centred and of unit variance over all, so that a penalty means the same for every encoder; the head undoes it below
    mean, scale = centre_and_spread(x["train"], model)

    # the penalty is chosen on images that the fits do not see: val, or runs of neighbouring files of each class
    if "val" in images:
        runs = [(x["train"], y["train"], x["val"], y["val"])]
    else:
        train = images["train"]
        masks = [blocked_split(train.labels, HOLDOUT, args.seed, train.groups)]
        if not masks[0].any():
            fail(f"--data {args.data}: one training image a class, none can be held out to choose by; few_shot.py needs none")
        for i in range(1, min(MOST, ENOUGH // masks[0].sum())):
            masks.append(blocked_split(train.labels, HOLDOUT, args.seed + i, train.groups))
        masks = [torch.from_numpy(held).to(model.device) for held in masks]
        runs = [(x["train"][~held], y["train"][~held], x["train"][held], y["train"][held]) for held in masks]
    scaled = [((a - mean) / scale, b, (c - mean) / scale, d) for a, b, c, d in runs]
    fits = sweep(scaled, len(data.classes), progress(PENALTIES, "penalties", "fit"))
    best = max(f["val"] for f in fits)
    chosen, *tied = [f for f in fits if f["val"] > best - 1e-9]  # of equals the largest penalty; means round
    z = (x["train"] - mean) / scale
    head = logistic_regression(z, y["train"], chosen["l2"], *chosen["head"])
    heads = {"head": head if chosen["frequencies"] else equal_classes(y["train"], *head)}
    if "val" not in images:  # for those who train on and validate on the first run, which this one has not seen
        heads["held_out"] = chosen["head"]
    heads = {name: (w / scale, b - w @ mean / scale) for name, (w, b) in heads.items()}  # for features as the encoder gives them

    # the rival that chooses nothing: where held-out images name it as good or better, it is the probe, being the plainer one
    whole = x["train"], y["train"]
    rivals = [nearest_mean(a, b, *heads["head"]) for a, b, *_ in (*runs, (*whole, None, None))]
    held = [accuracy(c, d, *rival) for (*_, c, d), rival in zip(runs, rivals)]
    rival, class_mean = sum(held) / len(held), accuracy(x["test"], y["test"], *rivals[-1])
    if nearest := rival > best - 1e-9:
        heads = dict(zip(heads, (rivals[-1], rivals[0])))  # of all of train, and of the first run
    weight, bias = heads["head"]

    logits = torch.addmm(bias, x["test"], weight.T).cpu()
    labels = images["test"].labels
    m = evaluate(logits, labels, data.classes, clusters(images["test"]))
    pairs, look_alike = find_copies(images["test"], images["train"], model.device)
    copies = torch.zeros(len(labels), dtype=torch.bool)
    copies[[p["test"] for p in pairs]] = True
    mislabelled = [p for p in pairs if not p["same_label"]]
    right = (logits.argmax(1) == labels)[~copies]
    metrics = {
        "train": accuracy(x["train"], y["train"], weight, bias),
        "val": max(best, rival),
        **m,
        "l2": None if nearest else chosen["l2"],
        "frequencies": not nearest and chosen["frequencies"],
        "class_mean": class_mean,
        "class_mean_val": rival,
        "near_copies": copies.double().mean().item(),
        "copies_of_another_label": len(mislabelled),
        "look_alike": look_alike.double().mean().item(),
        "test_without_near_copies": right.double().mean().item() if len(right) >= FEW else None,
    }
    for split, total in (("train", len(y["train"])), ("val", len(runs[0][3]))):
        metrics[f"{split}_ci95"] = wilson(metrics[split], total)

    print_setup(data, model, images)
    source = "images of the val split" if "val" in images else "held-out training images"
    times = f", mean of {len(runs)} such runs" if len(runs) > 1 else ""
    as_good = "; as good: " + some([f"{f['l2']:.0e}" for f in tied]) if tied else ""
    edge = "; the end of the sweep" if chosen["l2"] in (PENALTIES[0], PENALTIES[-1]) else ""
    print(f"penalty         {chosen['l2']:.0e}   best of {len(fits)} on {len(runs[0][3]):,} {source}", end="")
    print(f"{times}{as_good}{edge}")
    if not (nearest or chosen["frequencies"]):
        print("frequencies     left out: held-out images are named better as if all classes were equally frequent")
    for split in ("train", "val"):
        print(f"{split:15} {metrics[split]:.3f}   95 % interval {metrics[f'{split}_ci95'][0]:.3f} to {metrics[f'{split}_ci95'][1]:.3f}")
    taken = "the nearest class mean is taken for the probe" if nearest else "the probe stays"
    print(f"class mean      {class_mean:.3f}   on test, nearest class mean of the same features; held-out images", end=" ")
    print(f"give it {rival:.3f} and logistic regression {best:.3f}: {taken}")
    listed = Path(args.out).with_name(f"{Path(args.out).stem}-copies.csv") if args.out else None
    named = [f"{images['test'].paths[p['test']]} = {images['train'].paths[p['train']]}" for p in pairs]
    where = f": see {listed}" if listed and pairs else f": {some(named, 3)}" if pairs else ""
    print(f"copies          {metrics['near_copies']:.3f}   of the test images are copies of a training image{where}")
    if mislabelled:
        named = [f"{images['test'].paths[p['test']]} = {images['train'].paths[p['train']]}" for p in mislabelled]
        print(f"note: {counted(len(named), 'test image')} with a copy in another class of train, a wrong label: {some(named, 3)}")
    print(f"look alike      {metrics['look_alike']:.3f}   of the test images roughly resemble a training image, copy or not")
    without = f"{right.double().mean():.3f}" if len(right) >= FEW else "too few left"
    print(f"without them    {without}   {counted(len(right), 'image')}")
    print("all test images")
    print_metrics(m)
    if args.out:
        write_copies(pairs, images["test"].paths, images["train"].paths, listed)
        history = [{k: v for k, v in f.items() if k != "head"} for f in fits]
        labels_used = len(y["train"]) + len(y.get("val", ()))
        write_result(args.out, args, data, model, images, metrics, started, logits, labels_used, history)
    if args.save:
        about = {"model": model.name, "sha256": model.sha256, "features": model.features, "type": data.type}
        about |= {"act": model.act, "split": digest([i.paths for i in hold_out(images, args.seed).values()])}
        about |= {k: json.dumps(v) for k, v in (("classes", data.classes), ("words", data.words), ("prompts", args.prompts))}
        save_weights({f"{name}.{part}": t for name, head in heads.items() for part, t in zip(("weight", "bias"), head)}, args.save, about)
        print(f"saved {args.save}")


if __name__ == "__main__":
    main()
