"""Linear probe: logistic regression on frozen features, its L2 penalty chosen on held-out images, as in CLIP (Radford et al. 2021).

    python linear_probe.py                                               # the toy world: .777 in 15 s
    python linear_probe.py --data fruits360 --model resnet101 --save head.safetensors

CLIP and ImageNet models alike. Features are those before the last layer; of CLIP that is before its projection into the
space of captions, as in its paper: held-out images give .808 against .797 (toy-ViT) and .860 against .866 (toy-RN). It also
says how many test images are near-copies of training images, which no encoder can be praised for. Copy this file and
common.py to use it elsewhere.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F

from common import (
    HOLDOUT,
    add_flags,
    blocked_split,
    centre_and_spread,
    counted,
    default_model,
    digest,
    evaluate,
    every_class,
    fail,
    features,
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
    speed,
    wilson,
    write_result,
)

PENALTIES = [10 ** (e / 2) for e in range(2, -13, -1)]  # 10 to 1e-6 in half decades, for features of unit variance
ENOUGH, MOST = 1000, 5  # held-out images that choose well; with fewer, up to 5 runs of others, because few choose at random
COPY = 0.95  # cosine of thumbnails from which two images count as near-copies
FEW = 30  # images below which an accuracy says nothing


def logistic_regression(x, y, l2, weight, bias, steps=1000):
    """Minimise mean cross-entropy + l2/2 |W|^2 by full-batch L-BFGS from weight (C, D), bias (C,); the bias is free.

    x (N, D), y (N,). In scikit-learn's terms C = 1 / (l2 N).
    """
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=steps, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = F.cross_entropy(torch.addmm(bias, x, weight.T), y) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weight.detach(), bias.detach()


def accuracy(x, y, weight, bias):
    return (torch.addmm(bias, x, weight.T).argmax(1) == y).cpu().double().mean().item()  # mps has no double


def sweep(runs, classes, penalties):
    """Fit with each penalty, each time from the fit before, the largest first: [{"l2", "train", "val", "head"}].

    `runs` are [(x, y, x_val, y_val)]; the accuracies are means over them, the head (weight, bias) is that of the first.
    Small penalties get no further than 200 steps each, which changes what is chosen less than other held-out images do.
    """
    heads = [(x.new_zeros(classes, x.shape[1]), x.new_zeros(classes)) for x, *_ in runs]
    fits = []
    for l2 in penalties:
        heads = [logistic_regression(x, y, l2, *head, steps=200) for (x, y, *_), head in zip(runs, heads)]
        train = sum(accuracy(x, y, *head) for (x, y, *_), head in zip(runs, heads)) / len(runs)
        val = sum(accuracy(x, y, *head) for (*_, x, y), head in zip(runs, heads)) / len(runs)
        fits.append({"l2": l2, "train": train, "val": val, "head": heads[0]})
    return fits


def class_means(x, y, classes):
    """Unit-length (C, D): the normalised mean of the normalised features of each class."""
    x = F.normalize(x, dim=1)
    return F.normalize(x.new_zeros(classes, x.shape[1]).index_add_(0, y, x), dim=1)


def near_copies(test, train):
    """Which test images are near-copies of a training image, boolean (N,): a property of the data, not of an encoder.

    Thumbnails (N, 16, 16, 3) of whole pictures, the mean of each colour removed, and their cosine.
    """
    test, train = (F.normalize((t - t.mean((1, 2), keepdim=True)).flatten(1), dim=1) for t in (test.float(), train.float()))
    return torch.cat([(part @ train.T).amax(1) > COPY for part in test.split(1024)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "data model weights act prompts type classnames seed device precision batch out")
    parser.add_argument("--features", choices=("penultimate", "projected"), default="penultimate", help="of CLIP (%(default)s)")
    parser.add_argument("--save", metavar="FILE.safetensors", help="keep the head here, with its class names (not kept)")
    args = parser.parse_args()
    started = time.time()
    if args.save and not args.save.endswith(".safetensors"):
        parser.error(f"--save {args.save}: must end in .safetensors")

    data = load_data(args.data, args.classnames, args.type, args.seed)
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
    z = {split: (t - mean) / scale for split, t in x.items()}

    # the penalty is chosen on images that the fits do not see: val, or runs of neighbouring files of each class
    if "val" in images:
        runs = [(z["train"], y["train"], z["val"], y["val"])]
    else:
        masks = [blocked_split(images["train"].labels, HOLDOUT, args.seed)]
        if not masks[0].any():
            fail(f"--data {args.data}: one training image a class, none can be held out to choose by; few_shot.py needs none")
        for i in range(1, min(MOST, ENOUGH // masks[0].sum())):
            masks.append(blocked_split(images["train"].labels, HOLDOUT, args.seed + i))
        masks = [torch.from_numpy(held).to(model.device) for held in masks]
        runs = [(z["train"][~held], y["train"][~held], z["train"][held], y["train"][held]) for held in masks]
    fits = sweep(runs, len(data.classes), progress(PENALTIES, "penalties", "fit"))
    best = max(f["val"] for f in fits)
    chosen, *tied = [f for f in fits if f["val"] > best - 1e-9]  # of equals the largest penalty; means round
    heads = {"head": logistic_regression(z["train"], y["train"], chosen["l2"], *chosen["head"])}
    if "val" not in images:  # for those who train on and validate on the first run, which this one has not seen
        heads["held_out"] = chosen["head"]
    heads = {name: (w / scale, b - w @ mean / scale) for name, (w, b) in heads.items()}  # for features as the encoder gives them
    weight, bias = heads["head"]

    logits = torch.addmm(bias, x["test"], weight.T).cpu()
    means = F.normalize(x["test"], dim=1) @ class_means(x["train"], y["train"], len(data.classes)).T
    labels = images["test"].labels
    m = evaluate(logits, labels, data.classes)
    thumbnails = (torch.from_numpy(images[s].thumbnails[images[s].rows]).to(model.device) for s in ("test", "train"))
    copies = near_copies(*thumbnails).cpu()
    right = (logits.argmax(1) == labels)[~copies]
    metrics = {
        "train": accuracy(x["train"], y["train"], weight, bias),
        "val": best,
        **{key.replace("top1", "test"): value for key, value in m.items()},
        "l2": chosen["l2"],
        "class_mean": evaluate(means.cpu(), labels, data.classes)["top1"],
        "images_per_second": speed(model, next(images["test"].batches(args.batch or model.batch))),
        "near_copies": copies.double().mean().item(),
        "test_without_near_copies": right.double().mean().item() if len(right) >= FEW else None,
    }
    for split, total in (("train", len(y["train"])), ("val", len(runs[0][3]))):
        metrics[f"{split}_ci95"] = wilson(metrics[split] * total, total)

    print_setup(data, model, images)
    source = "images of the val split" if "val" in images else "held-out training images"
    times = f", mean of {len(runs)} such runs" if len(runs) > 1 else ""
    as_good = "; as good: " + some([f"{f['l2']:.0e}" for f in tied]) if tied else ""
    edge = "; the end of the sweep" if chosen["l2"] in (PENALTIES[0], PENALTIES[-1]) else ""
    print(f"penalty         {chosen['l2']:.0e}   best of {len(fits)} on {len(runs[0][3]):,} {source}{times}{as_good}{edge}")
    for split in ("train", "val"):
        print(f"{split:15} {metrics[split]:.3f}   95 % interval {metrics[f'{split}_ci95'][0]:.3f} to {metrics[f'{split}_ci95'][1]:.3f}")
    print(f"class mean      {metrics['class_mean']:.3f}   on test, nearest class mean of the same features")
    print(f"encoder         {metrics['images_per_second']:,.0f} images/s, from decoded picture to features")
    print(f"near-copies     {metrics['near_copies']:.3f}   of the test images resemble a training image (thumbnail cosine > {COPY})")
    without = f"{right.double().mean():.3f}" if len(right) >= FEW else "too few left"
    print(f"without them    {without}   {counted(len(right), 'image')}")
    print("all test images")
    print_metrics(m)
    if args.out:
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
