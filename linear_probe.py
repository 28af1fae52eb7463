"""Linear probe: logistic regression on frozen features, its L2 penalty chosen on held-out images, as in CLIP (Radford et al. 2021).

    python linear_probe.py                                               # the toy world: about .74 in 8 s
    python linear_probe.py --data fruits360 --model resnet101 --save head.safetensors --suspects suspects.csv
    python linear_probe.py --load head.safetensors --predict FOLDER --csv named.csv      # docs/after.md; --export model.onnx

CLIP and ImageNet models alike. Features are those before the last layer; of CLIP that is before its projection into the
space of captions, as in its paper: held-out images gave .786 against .767 (toy-ViT) and .845 against .854 (toy-RN). It also
says which test images are copies of training images, for which no encoder can be praised, which pictures lie in the data
twice, and with --suspects which labels look wrong. Copy this file and common.py to use it elsewhere.
"""

import argparse
import csv
from pathlib import Path

from common import (
    F,
    about,
    add_flags,
    atomic,
    calibrate,
    check_saved,
    counted,
    draw_pictures,
    ending,
    evaluate,
    first_rank_goes_on,
    kept_copies,
    load,
    measure_calibration,
    natural,
    np,
    product,
    progress,
    report,
    save_weights,
    some,
    torch,
    use_saved,
    wilson,
    wrap,
)

PENALTIES = [10 ** (e / 2) for e in range(2, -13, -1)]  # 10 to 1e-6 in half decades, for features of unit variance
ENOUGH, MOST = 1000, 5  # held-out images that choose well; with fewer, up to 5 runs of others, because few choose at random
CHANGE = 1e-6  # of the loss: as good a choice as by 1e-9, on six real sets of features and ten splits of each, in half the time;
# and it finds as many wrong labels (bench/suspects.py)
FALLS = 3  # penalties in a row below the best so far end the sweep: 80 of 82 sets chose the same
BLOCK = 2**24  # logits at a time: 64 MiB, however many images and classes there are
SAMPLE = 1000  # training images that tell how spread logits are
FEW = 30  # images below which an accuracy says nothing
FOLDS = 5  # of the cross-validation by which --suspects judges labels
SUSPECTS, PAIRS = 24, 12  # on a contact sheet
LARGE = 50_000  # images of a split above which they are not compared with each other: 4 times as many take 16 times as long
RED = "#c62828"
IDENTICAL = 0.999  # similarity from which pictures are compared byte for byte


def equal_say(y):
    """Weights (N,) of images with labels y (N,), 1 on average, by which all classes have as much to say."""
    each = 1 / torch.bincount(y)[y]
    return each / each.mean()


def loss_and_gradient(x, y, l2, weight, bias, each=None):
    """Mean cross-entropy + l2/2 |W|^2, and its gradient for weight (C, D) and bias (C,). x (N, D), y (N,), each (N,) weights of images.

    A block of images at a time and written out, because logits (N, C) and what autograd keeps of them can outgrow any memory.
    """
    loss, to_weight, to_bias = l2 / 2 * weight.square().sum(), l2 * weight, torch.zeros_like(bias)
    rows = max(1, BLOCK // len(bias))
    each = torch.ones_like(x[:, 0]) if each is None else each.to(x)
    for part, labels, say in zip(x.split(rows), y.split(rows), each.split(rows)):
        error = product(weight, part.T, bias[:, None]).log_softmax(0)  # (C, rows), which is the faster way round
        own = labels, torch.arange(len(labels), device=y.device)
        loss -= (error[own] * say).sum() / len(y)
        error.exp_()[own] -= 1
        error *= say
        to_weight = product(error, part, to_weight, 1 / len(y))
        to_bias += error.sum(1) / len(y)
    return loss, to_weight, to_bias


def logistic_regression(x, y, l2, weight, bias, steps=1000, each=None, change=1e-9):
    """Minimise mean cross-entropy + l2/2 |W|^2 by full-batch L-BFGS from weight (C, D), bias (C,); the bias is free.

    x (N, D), y (N,), each (N,) weights of images, 1 without. It ends where a step changes the loss by less than `change`. In
    scikit-learn's terms C = 1 / (l2 N).
    """
    weight, bias = weight.clone(), bias.clone()
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, tolerance_grad=1e-6, tolerance_change=change, history_size=10, line_search_fn="strong_wolfe"
    )

    @torch.no_grad()
    def closure():
        loss, weight.grad, bias.grad = loss_and_gradient(x, y, l2, weight, bias, each)
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


def sweep(runs, classes, penalties, balance=False):
    """Fit with each penalty, each time from the fit before, the largest first: [{"l2", "frequencies", "train", "val", "heads"}].

    `runs` are [(x, y, x_val, y_val)]; the accuracies are means over them, heads [(weight, bias)] are theirs. Where
    classes are unequal, held-out images also say whether the head keeps how frequent they were in training; of equals it does.
    With `balance`, images count by `equal_say`, and the head knows no frequencies.
    A fit ends where a step changes the loss by less than CHANGE. Once all held-out images are named right, no smaller penalty can be
    better, and none is tried.
    """
    fitted = [(x.new_zeros(classes, x.shape[1]), x.new_zeros(classes)) for x, *_ in runs]
    say, fits = [equal_say(y) if balance else None for _, y, *_ in runs], []
    for l2 in penalties:
        fitted = [logistic_regression(x, y, l2, *head, each=each, change=CHANGE) for (x, y, *_), head, each in zip(runs, fitted, say)]
        equal = fitted if balance else [equal_classes(y, *head) for (_, y, *_), head in zip(runs, fitted)]
        val = [sum(accuracy(x, y, *head) for (*_, x, y), head in zip(runs, heads)) / len(runs) for heads in (fitted, equal)]
        heads = equal if val[1] > val[0] + 1e-9 else fitted
        train = sum(accuracy(x, y, *head) for (x, y, *_), head in zip(runs, heads)) / len(runs)
        fits.append({"l2": l2, "frequencies": heads is fitted, "train": train, "val": max(val), "heads": heads})
        best = max(f["val"] for f in fits)
        if best == 1 or (len(fits) > FALLS and all(f["val"] < best - 1e-9 for f in fits[-FALLS:])):
            break
    return fits


def class_means(x, y, classes):
    """Unit-length (C, D): the normalised mean of the normalised features of each class."""
    x = F.normalize(x, dim=1)
    return F.normalize(x.new_zeros(classes, x.shape[1]).index_add_(0, y, x), dim=1)


def nearest_mean(x, y, weight, bias):
    """The nearest class mean as a head (C, D), (C,) for features x (N, D) as they come, its logits as spread as those of another head.

    The length of an image's features changes nothing in which class has the largest product. Logits that were less spread would
    give other probabilities of the same classes.
    """
    means = class_means(x, y, len(bias))
    logits, theirs = x[:SAMPLE] @ means.T, torch.addmm(bias, x[:SAMPLE], weight.T)
    spread, wanted = ((t - t.mean(1, keepdim=True)).square().mean().sqrt() for t in (logits, theirs))
    return means * (wanted / spread.clamp(min=1e-12)), torch.zeros_like(bias)


# ---- labels that look wrong -------------------------------------------------------------------------------------------


def blocked_folds(y, groups, folds=FOLDS):
    """The fold, 0 to folds - 1, of each image (N,): so many runs of neighbours of each class, in the order given; of a small class fewer.

    y (N,) labels; groups (N,) integers of images that are never parted, np.arange(N) where none belong together. Runs, because
    near-copies such as neighbouring frames of a video would vouch for each other's wrong label. A class of two groups or
    more has two folds or more. A group of several classes goes where the class with the fewest groups wants it.
    """
    fold, members = np.full(groups.max() + 1, -1), []
    for c in np.unique(y):
        mine, first, sizes = np.unique(groups[y == c], return_index=True, return_counts=True)
        members.append((mine[first.argsort()], sizes[first.argsort()]))
    for mine, sizes in sorted(members, key=lambda m: len(m[0])):
        middle = (sizes.cumsum() - sizes / 2) / sizes.sum()
        fold[mine] = np.where(fold[mine] < 0, (folds * middle).astype(int), fold[mine])
    return fold[groups]


def cross_validated(x, y, fold, l2, classes):
    """Probabilities (N, C) of each image by a logistic regression that has not seen its fold; and (N,) whether that has seen its class.

    x (N, D) centred and scaled, y (N,), fold (N,). How frequent classes are stays in, as these are probabilities of labels as given.
    """
    p, judged = x.new_zeros(len(y), classes), torch.zeros_like(y, dtype=torch.bool)
    start = x.new_zeros(classes, x.shape[1]), x.new_zeros(classes)
    for f in progress(fold.unique().tolist(), "folds", "fit"):
        held = fold == f
        if not held.all():
            weight, bias = logistic_regression(x[~held], y[~held], l2, *start, change=CHANGE)
            p[held] = torch.addmm(bias, x[held], weight.T).softmax(1)
            judged[held] = torch.bincount(y[~held], minlength=classes)[y[held]] > 0
    return p, judged


def find_suspects(p, y):
    """Confident learning (Northcutt, Jiang and Chuang 2021): (rows, likely) of labels y (N,) that out-of-sample p (N, C) speak against.

    A class's threshold is the mean probability that images given this label have of it. An image counts as the most probable
    of those classes whose thresholds it reaches, and is a suspect where that is not its label. The least probable label first.
    """
    own = p.gather(1, y[:, None])[:, 0]
    counts = torch.bincount(y, minlength=p.shape[1])
    thresholds = p.new_zeros(p.shape[1]).index_add_(0, y, own) / counts  # nan, which nothing reaches, of a class without images
    reached = p >= thresholds
    likely = p.masked_fill(~reached, -1).argmax(1)
    rows = (reached.any(1) & (likely != y)).nonzero()[:, 0]
    rows = rows[own[rows].argsort(stable=True)]
    return rows, likely[rows]


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


def fit_probe(x, y, runs, mean, scale, classes, balance):
    """(head, held, fits, tied): logistic regression on x (N, D), y (N,) with the penalty that is best on the held-out `runs`.

    head is (weight, bias) of all of train, held the same of each run, which has not seen its held-out images, for features as the
    encoder gives them; fits what `sweep` tried; tied what of it was best, the first of which is chosen.
    """
    scaled = [((a - mean) / scale, b, (c - mean) / scale, d) for a, b, c, d in runs]
    fits = sweep(scaled, classes, progress(PENALTIES, "penalties", "fit"), balance)
    best = max(f["val"] for f in fits)
    tied = [f for f in fits if f["val"] > best - 1e-9]  # of equals the largest penalty; means round
    chosen = tied[0]
    head = logistic_regression((x - mean) / scale, y, chosen["l2"], *chosen["heads"][0], each=equal_say(y) if balance else None)
    head = head if chosen["frequencies"] else equal_classes(y, *head)
    head, *held = [(w / scale, b - w @ mean / scale) for w, b in (head, *chosen["heads"])]
    return head, held, fits, tied


def out_of_sample(images, x, y, held, seed):
    """(logits (M, C), labels (M,), Images) of all images held out, each once, by the head (weight, bias) of a run that has not seen it."""
    if "val" in images:
        owner, split = np.zeros(len(images["val"]), int), "val"  # the first run's
    else:
        masks = np.stack([images["train"].block(seed + i) for i in range(len(held))])
        owner, split = np.where(masks.any(0), masks.argmax(0), -1), "train"
    rows = [torch.from_numpy(np.flatnonzero(owner == i)).to(y[split].device) for i in range(len(held))]
    logits = torch.cat([torch.addmm(bias, x[split][mine], weight.T) for mine, (weight, bias) in zip(rows, held)])
    rows = torch.cat(rows)
    return logits, y[split][rows], images[split].take(rows.cpu().numpy())


def search_copies(images, right, device):
    """Metrics of the test images that are copies of training images, and of what is left without them. Says which.

    right (N,): which test images the probe names right.
    """
    test, train = images["test"], images["train"]
    pairs = kept_copies(test, train, device)
    copies = torch.zeros(len(test), dtype=torch.bool)
    copies[[p["test"] for p in pairs]] = True
    left = right[~copies]
    wrong = [p for p in pairs if not p["same_label"]]
    metrics = {
        "near_copies": copies.double().mean().item(),
        "copies_of_another_label": len(wrong),
        "test_without_near_copies": left.double().mean().item() if len(left) >= FEW else None,
    }

    def named(pairs):
        return some([f"{test.paths[p['test']]} = {train.paths[p['train']]}" for p in pairs], 3)

    first = f": {named(pairs)}" if pairs else ""
    print(f"copies          {metrics['near_copies']:.3f}   of the test images are copies of a training image{first}")
    if wrong:
        print(f"note: {counted(len(wrong), 'test image')} with a copy in another class of train, a wrong label: {named(wrong)}")
    if pairs:
        without = f"{left.double().mean():.3f}" if len(left) >= FEW else "too few left"
        print(f"without them    {without}   {counted(len(left), 'image')}")
    return metrics


def write_list(file, header, rows, sheet):
    """CSV of `rows`, and beside it a .png that draw_pictures makes of `sheet`, its arguments behind the file; none without rows."""
    with atomic(file) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])
    picture = Path(file).with_suffix(".png")
    if rows:
        with atomic(picture) as temporary:
            draw_pictures(temporary, *sheet)
    else:
        picture.unlink(missing_ok=True)  # of an earlier run


def picture(images, split, i):
    return images[split][[i]][0].permute(1, 2, 0).numpy()


def caption(path, text):
    """What stands over a picture on a sheet: the name of its file, and a text, both wrapped and never cut."""
    return f"{wrap(Path(path).name, 25)}\n{wrap(text, 25)}"


def identical(images, a, b):
    """Whether two pictures, each (split, position), are the same byte for byte, as wholes and, where stored alike, in full size."""
    small, whole = ([getattr(images[s], part)[images[s].rows[i]] for s, i in (a, b)] for part in ("thumbnails", "pixels"))
    return np.array_equal(*small) and (whole[0].shape != whole[1].shape or np.array_equal(*whole))


def find_pairs(images, device):
    """[(a, b, pair)] of pictures of all splits that are copies; a and b are (split, position), pair as in find_copies.

    Each picture with its best match in each split, of its own label and of another. Those whose labels contradict each other
    come first, of these the identical ones, which `exact` says; the more similar before others.
    """
    pairs, splits = {}, list(images)
    for i, later in enumerate(splits):
        for earlier in splits[: i + 1]:
            if earlier == later and len(images[later]) > LARGE:
                print(f"note: pairs within {later} are not looked for, because it has more than {LARGE:,} images")
                continue
            for pair in kept_copies(images[later], images[earlier], device):
                a, b = (earlier, pair["train"]), (later, pair["test"])
                a, b = sorted((a, b)) if earlier == later else (a, b)
                exact = not pair["mirrored"] and pair["similarity"] > IDENTICAL and identical(images, a, b)
                pairs.setdefault((a, b), (a, b, pair | {"exact": exact}))
    return sorted(pairs.values(), key=lambda p: (p[2]["same_label"], not p[2]["exact"], -round(p[2]["similarity"], 4)))


def search_pairs(data, images, device, listed):
    """Says how many pictures lie in the data twice, and which of them under two labels; writes `listed`, or nothing without a name."""
    pairs = find_pairs(images, device)

    def named(split, i):
        return images[split].paths[i], split, data.classes[images[split].labels[i]]

    where = f": see {listed}" if listed and pairs else ""
    print(f"pairs           {len(pairs):,}   of pictures that are copies, within and across splits{where}")
    if wrong := [p for p in pairs if p[2]["exact"] and not p[2]["same_label"]]:
        said = some([f"{named(*a)[0]} = {named(*b)[0]}" for a, b, _ in wrong], 3)
        print(f"note: {counted(len(wrong), 'pair')} of identical pictures with different labels: {said}")
    if listed:
        yes = {True: "yes", False: "no"}
        rows = [(*named(*a), *named(*b), f"{p['similarity']:.4f}", yes[p["mirrored"]], yes[p["exact"]]) for a, b, p in pairs]
        shown = [(w, p) for a, b, p in pairs[:PAIRS] for w in (a, b)]
        captions = [caption(path, f"{split}, {label}") for path, split, label in (named(*w) for w, _ in shown)]
        colours = ["black" if p["same_label"] else RED for _, p in shown]
        title = f"{data.name}: copies, two and two; red where labels contradict each other; {min(PAIRS, len(pairs))} of {len(pairs):,}"
        header = ["a", "split_a", "label_a", "b", "split_b", "label_b", "similarity", "mirrored", "exact"]
        write_list(listed, header, rows, ([picture(images, *w) for w, _ in shown], captions, colours, title))


def all_in_folds(data, images, labels):
    """(where, fold): all images of all splits as (split, position), and their folds (N,) for `labels` (N,).

    Neighbours are those by name below the folder of a class, whichever splits they lie in, because a split may have cut a video.
    """
    where, names = [], []
    for split, part in images.items():
        folders = data.folders.get(split) or next(iter(data.folders.values()))  # the latter where there is no test folder
        where += [(split, i) for i in range(len(part))]
        names += [natural("/".join(path.split("/")[len(folders[0].parts) :])) for path in part.paths]
    known = {}
    groups = [known.setdefault(name, len(known)) for part in images.values() for name in part.groups or ()]
    groups = np.array(groups) if known else np.arange(len(where))
    order, fold = sorted(range(len(where)), key=names.__getitem__), np.empty(len(where), int)
    fold[order] = blocked_folds(np.asarray(labels)[order], groups[order])
    return where, fold


def search_suspects(data, images, x, y, l2, mean, scale, file):
    """Says which labels of any split look wrong, and writes them to `file`; x {split: (N, D)} as the encoder gives it, y {split: (N,)}."""
    x, y = (torch.cat([t[split] for split in images]) for t in (x, y))
    where, fold = all_in_folds(data, images, y.cpu())
    p, judged = cross_validated((x - mean) / scale, y, torch.from_numpy(fold).to(y.device), l2, len(data.classes))
    known = judged.nonzero()[:, 0]
    rows, likely = find_suspects(p[known], y[known])
    rows = known[rows]

    found = []
    for row, other in zip(rows.tolist(), likely.tolist()):
        split, i = where[row]
        given = y[row].item()
        found.append((images[split].paths[i], split, data.classes[given], data.classes[other], p[row, given].item(), p[row, other].item()))
    if len(known) < len(y):
        print(f"note: {counted(len(y) - len(known), 'label')} not judged: the class has no other image, or no other group, to learn from")
    agree = (p[known].argmax(1) == y[known]).double().mean().item()  # a weak encoder suspects many that are right
    print(f"suspects        {len(found):,}   of {len(known):,} labels look wrong to confident learning: see {file}")
    print(f"                its heads agree with {agree:.3f} of the labels: the fewer, the more suspects are right after all")
    for path, _, given, other, low, high in found[:5]:
        print(f"  {path}: {given} {low:.2f} -> {other} {high:.2f}")

    header = ["path", "split", "given", "likely", "given_probability", "likely_probability"]
    captions = [caption(path, f"{split}, {given} -> {other}") for path, split, given, other, *_ in found[:SUSPECTS]]
    title = f"{data.name}: labels that look wrong, given -> likely; {min(SUSPECTS, len(found))} of {len(found):,}"
    pictures = [picture(images, *where[row]) for row in rows[:SUSPECTS].tolist()]
    listed = [(*names, f"{low:.4f}", f"{high:.4f}") for *names, low, high in found]
    write_list(file, header, listed, (pictures, captions, ["black"] * SUSPECTS, title))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "data model weights act prompts type classnames label-from groups fit seed device precision batch alpha reject out")
    parser.add_argument("--features", choices=("penultimate", "projected"), default="penultimate", help="of CLIP (%(default)s)")
    save = "keep the head here, with its class names (not kept)"
    parser.add_argument("--save", type=ending(".safetensors"), metavar="FILE.safetensors", help=save)
    suspects = "list labels of any split that look wrong here, and the first of them as pictures in FILE.png (not looked for)"
    parser.add_argument("--suspects", type=ending(".csv"), metavar="FILE.csv", help=suspects)
    parser.add_argument("--balance", action="store_true", help="in the loss, a class of few images has as much to say as any (no)")
    add_flags(parser, "load predict csv bom export")
    args = parser.parse_args()
    check_saved(parser, args)
    if args.prompts and not args.save:
        parser.error("--prompts only go into the --save file, for those who start from it; the probe needs none")
    return args


def main():
    args = arguments()
    if args.load:
        return use_saved(args, args.batch)
    data, model = load(args, args.features)
    images = data.images(model.view)
    x, y = {}, {}
    for split in images:
        x[split], y[split] = model.features(images[split])
    first_rank_goes_on()

    # the penalty is chosen on images that the fits do not see; features are centred and of unit variance over all, so that it
    # means the same for every encoder
    mean, scale = model.centre_and_spread(x["train"])
    runs = held_out_runs(images, x, y, args.seed)
    head, held, fits, (chosen, *tied) = fit_probe(x["train"], y["train"], runs, mean, scale, len(data.classes), args.balance)
    best = max(f["val"] for f in fits)

    # the rival that chooses nothing: where held-out images name it as good or better, it is the probe, being the plainer one
    whole = x["train"], y["train"], None, None
    *theirs, mean_head = [nearest_mean(a, b, *head) for a, b, *_ in (*runs, whole)]
    values = [accuracy(c, d, *rival) for (*_, c, d), rival in zip(runs, theirs)]
    rival, class_mean = sum(values) / len(values), accuracy(x["test"], y["test"], *mean_head)
    if nearest := rival > best - 1e-9:
        head, held = mean_head, theirs
    weight, bias = head

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

    # confidence, fitted on images that the heads have not seen: of val by the probe itself, else of each run by its own
    held_logits, held_labels, unseen = out_of_sample(images, x, y, [head] if "val" in images else held, args.seed)
    fitted = calibrate(held_logits, held_labels, args.alpha, source.removeprefix("images of the "))
    if "val" not in images:
        print("note: the probe has learnt from all of train; its confidence is that of the heads which have not seen these images")
    logits = torch.addmm(bias, x["test"], weight.T)
    metrics |= search_copies(images, (logits.argmax(1) == y["test"]).cpu(), model.device)
    search_pairs(data, images, model.device, args.out and Path(args.out).with_name(f"{Path(args.out).stem}-pairs.csv"))
    print("all test images")
    metrics |= evaluate(logits, y["test"], data.classes, images["test"].clusters)
    metrics["calibration"] = measure_calibration(fitted, logits, y["test"], data.classes, unseen.clusters, args.reject)
    metrics |= {"l2": None if nearest else chosen["l2"], "frequencies": not nearest and chosen["frequencies"]}
    metrics |= {"class_mean": class_mean, "class_mean_val": rival}
    history = [{k: v for k, v in f.items() if k != "heads"} for f in fits]
    used = len(y["train"]) + len(y.get("val", ()))
    if args.save:
        heads = {"head": head} | ({} if "val" in images else {"held_out": held[0]})  # with val the first run is all of train
        tensors = {f"{name}.{part}": t for name, head in heads.items() for part, t in zip(("weight", "bias"), head)}
        save_weights(args.save, tensors, about(data, model, images, args.seed) | {"calibration": fitted})
        print(f"saved {args.save}")
    if args.suspects:
        search_suspects(data, images, x, y, chosen["l2"], mean, scale, args.suspects)
    # last: where there is a record, and make goes by it, there is all else
    report(args, data, model, images, metrics, "linear probe" + args.balance * ", balanced", logits, used, history=history)


if __name__ == "__main__":
    main()
