"""Few-shot: how many labels do I need? Test accuracy against labels per class, several methods, several draws of the labels.

    python few_shot.py                                                   # the toy world: about .6 (1 label) to .7 (all) in 8 s
    python few_shot.py --data fruits360 --model RN101 --shots 1 2 4 8 16 --seeds 5

What is reported for k labels a class used k labels a class: no validation set, nothing chosen on test. With captions
`text-init` is advised, without them `linear`; both settle into much the same as labels grow many. With all labels use
linear_probe.py, which chooses its penalty on held-out images: the column `all` is only what the same method reaches then.
Copy this file and common.py to use it elsewhere.

    x    features of unit length: (S, n, D) of the S draws of one k, (N, D) of the test images
    y    (n,) labels, the same for each draw: images are listed class by class, and each draw takes equally many of a class
    z    (C, D) unit-length class embeddings of the captions, which are the zero-shot weights
"""

import argparse
import math

from common import F, add_flags, at_least, counted, evaluate, first_rank_goes_on, load, np, product, progress, report, torch

L2 = 1e-4  # of `linear`: held-out accuracy at most .025 below that of the best of 1e-2 ... 1e-7, for each k from 1 to 16
# (share, firmness) that `text_init` chooses from: weights start at share * captions; firmness 0 pulls them there by L2 alone, 1 by up
# to FIRM times that. FIRM: of 30 to 1000 the best for 1 to 8 labels of held-out toy images
TRUST = ((0.0, 0.0), (0.25, 0.0), (1.0, 0.0), (1.0, 1.0))
FIRM = 300
ALPHA, BETA = 1.0, 5.5  # of `tip`, its paper's
ENOUGH = 500  # images to measure one number on
STEPS = 20  # of the fits that are only compared
GRADIENT = 1e-4  # a fit ends where no entry of its gradient is larger, as scikit-learn's does
BLOCK = 2**24  # logits at once
MEMORY = 2**30  # bytes that all draws of one k may take at once; where they would take more, one draw comes after the other


def draw(labels, k, seed):
    """Sorted rows of k images of each class, all of a class that has fewer; more shots contain the fewer.

    One permutation a class and seed, of its images in path order, and the first k of it.
    """
    rows = []
    for c in np.unique(labels):
        mine = np.flatnonzero(labels == c)
        rows.append(np.random.default_rng([seed, c]).permutation(mine)[:k])
    return np.sort(np.concatenate(rows))


# ---- methods: each learns from the images x of S draws and gives a function from images (B, D) to logits (S, B, C) --------


def class_mean(x, y, classes):
    """Cosine to the mean of each class."""
    means = F.normalize(x.new_zeros(len(x), classes, x.shape[2]).index_add_(1, y, x), dim=2)
    return lambda x_test: x_test @ means.transpose(1, 2)


def tip(x, y, z, scale, alpha=ALPHA, beta=BETA):
    """Tip-Adapter without training (Zhang et al. 2022): zero-shot + alpha exp(-beta (1 - cosine)) votes."""

    def classifier(x_test):
        near = torch.exp(beta * (x_test @ x.transpose(1, 2) - 1))  # (S, B, n)
        return (scale * x_test @ z.T).expand(len(x), -1, -1).index_add(2, y, alpha * near)

    return classifier


# ---- linear: a layer that knows nothing of captions ------------------------------------------------------------------


def standardise(x, mean):
    """(S, n, D + 1): x (n, D) or (S, n, D) less mean (S, 1, D), which images share, at unit length; a 1 for the bias."""
    x = F.normalize(x - mean, dim=2)
    return torch.cat([x, torch.ones_like(x[..., :1])], 2)


def span(x):
    """Orthonormal basis (S, D, n) of the images (S, n, D) of each draw, or None where n >= D and nothing can be saved."""
    if x.shape[1] >= x.shape[2]:
        return None
    a = x.transpose(1, 2)
    return torch.linalg.qr(a.cpu() if a.device.type == "mps" else a).Q.to(a.device)  # mps has none, or a very slow one


def equal_say(y):
    """Weights (n,) of images with labels y (n,), 1 on average, by which all classes have as much to say."""
    each = 1 / torch.bincount(y)[y]
    return each / each.mean()


def logistic(x, y, origin, l2, steps=300, balance=False):
    """Weights w (S, D, C) that minimise the mean cross-entropy of x @ w + l2/2 |w - origin|^2, by L-BFGS.

    x (S, n, D), y (n,), origin (S, D, C), l2 a number or (S, 1, 1); with `balance`, images
    count by `equal_say`. Each gradient lies in the span of the images, so w - origin
    does too (representer theorem). The gradient is written out, so that only a block of logits is held at a time.
    """
    basis = span(x)
    whole = origin
    if basis is not None:
        x, origin = x @ basis, basis.transpose(1, 2) @ origin
    origin = origin.transpose(1, 2).contiguous()  # (S, C, D): with images last, products take three quarters of the time
    w = origin.clone()
    each = equal_say(y).to(x) if balance else torch.ones_like(x[0, :, 0])
    images, rows = y.expand(len(x), -1)[:, None], max(1, BLOCK // (len(x) * w.shape[1]))
    optimiser = torch.optim.LBFGS([w], max_iter=steps, history_size=10, tolerance_grad=GRADIENT, line_search_fn="strong_wolfe")

    def closure():
        w.grad = l2 * (w - origin)
        value = (l2 / 2 * (w - origin).square()).sum()
        for x_rows, y_rows, say in zip(x.split(rows, 1), images.split(rows, 2), each.split(rows)):
            p = product(w, x_rows.transpose(1, 2)).log_softmax(1)
            value -= (p.gather(1, y_rows) * say).sum() / len(y)
            p = p.exp_().scatter_add_(1, y_rows, p.new_full(y_rows.shape, -1)).mul_(say)
            w.grad = product(p, x_rows, w.grad, 1 / len(y))
        return value

    optimiser.step(closure)
    w = (w - origin).transpose(1, 2)
    return whole + (w if basis is None else basis @ w)


def linear(x, y, classes, l2=L2, balance=False):
    """A linear layer that knows nothing of captions: mean cross-entropy + l2/2 |w|^2, from zero.

    Features are centred on the training images of their draw: those of an encoder share a large common part.
    """
    mean = x.mean(1, keepdim=True)
    w = logistic(standardise(x, mean), y, x.new_zeros(len(x), x.shape[2] + 1, classes), l2, balance=balance)
    return lambda x_test: standardise(x_test, mean) @ w


# ---- text-init: the same layer, pulled to the captions as far as the labels trust them ----------------------------------


def calibrate(logits, y):
    """(scale, cross-entropy), each (S, 1, 1): the factor of the logits (S, n, C) that suits the labels y (n,) best.

    Labels are smoothed by 1 in n + 1, as if one more image had been named at random: n right answers are no proof of an
    infinite factor. Cross-entropy is convex in the factor, so its slope is bisected, within four decades.
    """
    logits = logits - logits.mean(2, keepdim=True)
    wanted = logits.gather(2, y.expand(len(logits), -1)[:, :, None])[:, :, 0] * (len(y) / (len(y) + 1))  # (S, n)
    low, high = torch.tensor([-2.0, 2.0], dtype=logits.dtype, device=logits.device).expand(len(logits), 2).T
    unit = logits.square().mean((1, 2)).sqrt().clamp(min=1e-12)
    for _ in range(12):
        middle = (low + high) / 2
        scaled = logits * (10**middle / unit)[:, None, None]
        slope = ((scaled.softmax(2) * logits).sum(2) - wanted).mean(1)
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    scale = 10 ** ((low + high) / 2) / unit
    loss = ((logits * scale[:, None, None]).logsumexp(2) - scale[:, None] * wanted).mean(1)
    return scale[:, None, None], loss[:, None, None]


def spaced(y):
    """At most ENOUGH of the rows of y (n,), evenly spaced."""
    return slice(None, None, -(-len(y) // ENOUGH))


def from_captions(mean, size, z, scale):
    """Weights (S, D + 1, C) of standardised images that are scale * zero-shot but for the length of an image less the mean.

    mean (S, 1, D) and size (S, 1, 1), that length on average, of the training images; z (C, D), scale (S, 1, 1).
    """
    z = z.T.expand(len(mean), -1, -1)
    return torch.cat([scale * size * z, scale * mean @ z], 1)


def pulled(x, y, z, scale, l2, steps=300, balance=False):
    """`linear`, except that its penalty is l2/2 |w - scale * z|^2 instead of l2/2 |w|^2."""
    mean = x.mean(1, keepdim=True)
    size = (x - mean).norm(dim=2).mean(1)[:, None, None]
    w = logistic(standardise(x, mean), y, from_captions(mean, size, z, scale), l2, steps, balance)
    return lambda x_test: standardise(x_test, mean) @ w


def parts(y):
    """(n,) the i-th image of a class is in part i, of 2 parts, or of 4 from four images on; -1 where it is the only one."""
    sizes = torch.bincount(y)
    order = torch.argsort(y, stable=True)
    place = torch.empty_like(y)
    place[order] = torch.arange(len(y), device=y.device) - (sizes.cumsum(0) - sizes)[y[order]]
    return torch.where(sizes[y] > 1, place % (4 if sizes.max() >= 4 else 2), -1)


def held_out(x, y, z, candidates, balance=False):
    """(len(candidates), S): cross-entropy, at its best scale, of each (scale, l2) on labels held out, part by part until ENOUGH."""
    part, labels, tried = parts(y), [], [[] for _ in candidates]
    for p in range(part.max() + 1):
        out = torch.nonzero(part == p)[:, 0]
        out = out[spaced(out)]
        seen = part != p
        for logits, (scale, l2) in zip(tried, candidates):
            logits.append(pulled(x[:, seen], y[seen], z, scale, l2, STEPS, balance)(x[:, out]))
        labels.append(y[out])
        if sum(map(len, labels)) >= ENOUGH:
            break
    return torch.stack([calibrate(torch.cat(logits, 1), torch.cat(labels))[1].ravel() for logits in tried])


def text_init(x, y, z, trust=None, balance=False):
    """Softmax regression whose weights start from the captions and are pulled back to them, as hard as these deserve it.

    It minimises mean cross-entropy + l2/2 |w - share * scale * z|^2, of the images and with the L2 of `linear`, which is what share 0
    gives. `scale` is not CLIP's but the one that suits the labels: small where captions are bad. Firm captions have
    l2 = L2 * FIRM ** (the share of log C that they explain of the labels). Which of TRUST a draw takes (or `trust`, for all
    draws), its own labels say: each class's images are held out in turn. With one label a class nothing can be held out, and
    the last of TRUST is taken.
    """
    shown = spaced(y)
    scale, loss = calibrate(x[:, shown] @ z.T, y[shown])
    firm = FIRM ** (1 - loss / math.log(len(z))).clamp(min=0)
    candidates = [(share * scale, L2 * firm**firmness) for share, firmness in ([trust] if trust else TRUST)]
    chosen = torch.full((len(x),), len(candidates) - 1, device=x.device)
    if len(candidates) > 1 and torch.bincount(y).max() > 1:
        chosen = held_out(x, y, z, candidates, balance).argmin(0)
    scale, l2 = (torch.stack(c)[chosen, torch.arange(len(x), device=x.device)] for c in zip(*candidates))
    return pulled(x, y, z, scale, l2, balance=balance)


# ---- the sweep ----------------------------------------------------------------------------------------------------------


def right_or_wrong(fit, x, y, x_test, y_test, classes):
    """bool (S, N): which test images the classifier that fit(x, y) gives names right, a block of logits at a time."""
    classifier, rows = fit(x, y), max(1, BLOCK // (len(x) * classes))
    return torch.cat([classifier(t).argmax(2) == c for t, c in zip(x_test.split(rows), y_test.split(rows))], 1)


def working_memory(draws, images, width, classes):
    """Bytes, about: some copies of the images, and of the weights L-BFGS's history of 10 pairs and what it makes of them."""
    return 4 * draws * (4 * images * width + 30 * min(images, width) * classes)


def print_table(table, taken, draws, everything):
    """A line a method, a column a k: mean±standard deviation of the accuracies, alone where there is but one draw.

    taken {k: images} and draws {k: different draws}; once a k takes `everything`, larger ones would repeat it.
    """
    columns = [k for i, k in enumerate(taken) if i == 0 or taken[k] > list(taken.values())[i - 1]]
    print(f"test accuracy, mean±standard deviation over {counted(max(draws.values()), 'draw')} of the labels")
    print("labels a class" + "".join(f"{'all' if taken[k] == everything else k:>12}" for k in columns))
    for method, row in table.items():
        cells = (f"{row[k]['mean']:.3f}" + (f"±{row[k]['std']:.3f}" if draws[k] > 1 else "") for k in columns)
        print(f"{method:14}" + "".join(f"{cell:>12}" for cell in cells))
    advised = "text-init, which weighs captions and labels" if "text-init" in table else "linear, since there are no captions"
    print(f"advised for few labels: {advised}; with all of them linear_probe.py, which chooses its penalty on held-out images")


def learn(methods, x, labels, x_test, y_test, shots, seeds):
    """Each method with each number of labels, for each draw: (right, draws, taken).

    x (N, D) and labels (N,) are the training images; `methods` are {name: function (x, y) -> classifier}. right uint8 (K, M, S, n)
    is 1 where the method that learnt from draw s of k labels a class names the test image right. draws {k: how many different
    ones}, taken {k: how many images in each}.
    """
    right, done = np.zeros((len(shots), len(methods), len(seeds), len(y_test)), np.uint8), {}
    draws, taken, classes = {}, {}, int(labels.max()) + 1
    for i, k in enumerate(progress(shots, "few-shot", "k")):
        drawn = [draw(labels.numpy(), k, seed) for seed in seeds]
        rows, which = np.unique(drawn, axis=0, return_inverse=True)  # with all labels there is but one
        draws[k], taken[k] = rows.shape
        y = labels[rows[0]].to(x.device)
        # all draws of one k are one problem, or as many problems where that would be too large
        large = working_memory(*rows.shape, x.shape[1], classes) > MEMORY
        problems = np.split(rows, len(rows)) if large else [rows]
        for j, (method, fit) in enumerate(methods.items()):
            if (method, rows.tobytes()) not in done:
                blocks = [right_or_wrong(fit, x[torch.from_numpy(r)], y, x_test, y_test, classes) for r in problems]
                done[method, rows.tobytes()] = torch.cat(blocks).cpu().numpy()
            right[i, j] = done[method, rows.tobytes()][which.ravel()]
    return right, draws, taken


def tabulate(right, methods, shots, draws):
    """{method: {k: mean, std and values of the accuracies of the draws}}; std is None for one draw, and 0 where all are the same."""
    table = {}
    for j, method in enumerate(methods):
        table[method] = {}
        for i, k in enumerate(shots):
            values = right[i, j].mean(1)
            std = (values.std(ddof=1).item() if draws[k] > 1 else 0.0) if len(values) > 1 else None
            table[method][k] = {"mean": values.mean().item(), "std": std, "values": values.tolist()}
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "data model weights act prompts type classnames label-from groups fit seed device precision batch out")
    shots = [1, 2, 4, 8, 16, 32, 64, 128]
    parser.add_argument("--shots", nargs="+", type=at_least(1), default=shots, metavar="K", help="labels a class (%(default)s)")
    parser.add_argument("--seeds", type=at_least(1), default=5, metavar="N", help="draws of the labels, from --seed on (%(default)s)")
    told = "in the loss of linear and text-init, a class with fewer than k images has as much to say as any (no)"
    parser.add_argument("--balance", action="store_true", help=told)
    args = parser.parse_args()
    args.shots = sorted(set(args.shots))

    data, model = load(args)
    images = data.images(model.view, ["train", "test"])
    (x, _), (x_test, y_test) = (model.features(i) for i in images.values())
    first_rank_goes_on()
    x, x_test = F.normalize(x, dim=1), F.normalize(x_test, dim=1)
    labels, classes = images["train"].labels, len(data.classes)  # labels on the CPU, where they are drawn
    sizes = np.bincount(labels)
    shots = args.shots if args.shots[-1] >= sizes.max() else [*args.shots, int(sizes.max())]  # the last takes every label
    short = {k: int((sizes < k).sum()) for k in shots}
    if told := [f"{short[k]} of {classes} at k = {k}" for k in args.shots if short[k]]:
        print(f"note: classes with fewer than k images give all they have: {', '.join(told)}; the smallest has {sizes.min()}")

    # the methods: labels alone, and where there are captions these too
    methods = {
        "class-mean": lambda x, y: class_mean(x, y, classes),
        "linear": lambda x, y: linear(x, y, classes, balance=args.balance),
    }
    metrics = {"chance": 1 / classes, "draw": draw.__doc__.strip(), "short_classes": short}
    if model.has_text:
        z = model.classifier(data.words, data.templates, data.type)
        methods["tip"] = lambda x, y: tip(x, y, z, model.logit_scale)
        methods["text-init"] = lambda x, y: text_init(x, y, z, balance=args.balance)
        # captions chosen with labels give no zero-shot number
        name = "chosen prompts" if data.chosen_with else "zero-shot"
        m = evaluate(x_test @ z.T, y_test, data.classes, images["test"].clusters)
        print("{:14}{:12.3f}   95 % interval {:.3f} to {:.3f}".format(name, m["top1"], *m["top1_ci95"]), end=", ")
        print("its labels are in tip and text-init too" if data.chosen_with else "no label used")
        name = name.replace("-", "_").replace(" ", "_")
        metrics |= {name + key.removeprefix("top1"): value for key, value in m.items() if "top1" in key}

    # five draws of the labels for each k, each method on the same ones
    seeds = range(args.seed, args.seed + args.seeds)
    right, draws, taken = learn(methods, x, labels, x_test, y_test, shots, seeds)
    table = tabulate(right, methods, shots, draws)
    print_table(table, taken, draws, len(labels))
    metrics |= {"methods": list(methods), "labels": taken, "draws": draws, **table}
    rows = [
        {
            "method": f"few-shot, {method}" + weighed * ", balanced",
            "labels": k,
            "labels_used": max(taken[k], data.chosen_with),
            "right": right[i, j],
        }
        for i, k in enumerate(shots)
        for j, method in enumerate(methods)
        for weighed in (args.balance and method in ("linear", "text-init"),)
    ]
    report(args, data, model, images, metrics, labels_used=max(len(labels), data.chosen_with), rows=rows)


if __name__ == "__main__":
    main()
