"""How fast the scripts are beside what one would run instead: the same pictures and weights, in turns, so that a busy moment hits both.

    make bench                                          # all of it on 2 cores, about 15 min; writes the table of docs/speed.md
    python bench/beside.py --only few-shot probe        # some of it, only printed
    python bench/beside.py --long --made 290 --to docs/speed.md      # with 100,000 images, and the seconds that `make` took by hand
    python bench/beside.py --device cuda --to docs/speed.md          # on a GPU, a table of its own

Peers are torchvision's ImageFolder and DataLoader, timm, open_clip, CLIP_benchmark and scikit-learn (tests/requirements.txt), with
glibc's allocator as it comes; a bare forward pass or step has ours. With REAL_DATA=FOLDER, of Fruits-360 and weights of mobilenet_v2,
pictures are real; otherwise they are made, and the row says so. Weights of CLIP are random: speed does not depend on them. A ratio
is the median of those of the rounds.
"""

import argparse
import contextlib
import datetime
import io
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from clip.model import CLIP as Network
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import few_shot
import finetune
import linear_probe
import prompts
import toy
import upsample
from common import (
    CLIP,
    _keep_memory as keep_memory,
    _read_image as read_image,
    fit,
    half_epochs,
    hold_out,
    load,
    load_data,
    load_model,
    save_weights,
    spelled,
)

REAL = os.environ.get("REAL_DATA")
PLAIN = "ImageFolder, Pillow, DataLoader(2), float32"
MINUTES = 10  # from then on each part has one round, so that all of it takes no more than a quarter of an hour
HEADINGS = {"cpu": "## Beside what one would run instead", "cuda": "## The same on a GPU"}


# ---- how it is measured -------------------------------------------------------------------------------------------------


def in_turns(args, *works, rounds=3, budget=60):
    """(rounds, works) seconds. Each work is called with the number of the round, in an empty folder, which is why it finds no cache.

    After `budget` seconds, or MINUTES from the start of all, no further round begins: one at least is measured. On a GPU the first
    one, in which it looks for the best kernels, does not count. A function that a work returns is called when its time has been taken.
    """
    rows, began, here, warm = [], time.perf_counter(), os.getcwd(), either(args, 0, 1)
    for i in range(1 if args.quick else rounds + warm):
        row = []
        for work in works:
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                os.chdir(folder)
                start = time.perf_counter()
                try:
                    after = work(i)
                    wait(args.device)
                    row.append(time.perf_counter() - start)
                    if callable(after):
                        after()
                finally:
                    os.chdir(here)
        rows.append(row)
        if len(rows) > warm and (time.perf_counter() - began > budget or time.perf_counter() > args.until):
            break
    return np.array(rows[0 if args.quick else warm :])


def as_usual(work):
    """A work of others with memory as it comes, as where `common` is not imported."""

    def usual(*args):
        keep_memory(False)
        try:
            return work(*args)
        finally:
            keep_memory()

    return usual


def wait(device):
    """A GPU works on while Python goes ahead."""
    if device == "cuda":
        torch.cuda.synchronize()


def row(what, ours, beside, ratio, goal="", better=max, rounds=1):
    """One line of the table; `goal` is what the ratio should reach (better=max) or not exceed (min)."""
    held = "" if goal == "" else "held" if better(ratio, goal) == ratio else "not held"
    away = round if goal == "" else math.floor if better is max else math.ceil  # or .949 would be an .95 that does not reach .95
    shown = f"{away(round(100 * ratio, 6)) / 100:.2f}"
    goal = goal and f"{'≥' if better is max else '≤'} {goal:g}"
    print(f"{what}: {ours}; {beside}; ratio {shown}" + (goal and f", {goal}: {held}"), flush=True)
    return {"what": what, "ours": ours, "beside": beside, "rounds": rounds, "ratio": shown, "goal": goal, "held": held}


def either(args, cpu, gpu):
    """What holds on this device, such as a goal."""
    return gpu if args.device == "cuda" else cpu


def rates(what, times, count, plain, goal=""):
    """The row of a work of `count` images beside another, by times (rounds, 2): how many times as fast it is."""
    ours, theirs = count / np.median(times, 0)
    ratio = np.median(times[:, 1] / times[:, 0])
    return row(what, f"{ours:,.1f} images/s", f"{plain}: {theirs:,.1f}", ratio, goal, rounds=len(times))


def seconds(what, times, plain, goal="", better=max):
    """The same in seconds; with better=min how many times as long it takes."""
    ours, theirs = np.median(times, 0)
    ratio = np.median(times[:, 1] / times[:, 0] if better is max else times[:, 0] / times[:, 1])
    return row(what, f"{ours:.3g} s", f"{plain}: {theirs:.3g} s", ratio, goal, better, len(times))


# ---- pictures and weights -----------------------------------------------------------------------------------------------


def smooth(rng, width, height):
    """A picture with large shapes and some grain, as a photograph has them."""
    small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize((width, height), Image.BICUBIC)
    grain = 4 * rng.standard_normal((height, width, 1), np.float32)
    return Image.fromarray((np.asarray(small) + grain).clip(0, 255).astype(np.uint8))


def write_pictures(folder, count, sizes, classes=4, different=64, kind="jpg"):
    """folder/CLASS/NUMBER.jpg of these (width, height); no more than `different` ones are made, the others are links to them."""
    rng, made = np.random.default_rng(0), []
    for i in range(count):
        file = folder / f"{i % classes:03}" / f"{i:07}.{kind}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if i < different:
            smooth(rng, *sizes[i * len(sizes) // min(different, count)]).save(file, **({"quality": 90} if kind == "jpg" else {}))
            made.append(file)
        else:
            os.link(made[i % different], file)


def fruits(folder, count):
    """(folder with test/CLASS/FILE of `count` pictures of 100 px, what they are): real ones, or made."""
    if REAL and not folder.exists():
        files = sorted(Path(REAL, "fruits360/Test").rglob("*.jpg"))
        places = sorted({file.parent for file in files})
        for i, file in enumerate(files[:: max(1, len(files) // count)][:count]):
            to = folder / f"test/{places.index(file.parent):03}/{i:04}.jpg"  # which all put into the same order
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(file.read_bytes())
    elif not folder.exists():
        write_pictures(folder / "test", count, [(100, 100)], min(95, count), count)
    return folder, "of Fruits-360" if REAL else "made"


def random_weights(name, folder):
    """A file of random weights in the shape of `name`, or the published ones that REAL_DATA has."""
    if REAL and name == "mobilenet_v2":
        return Path(REAL, "weights/mobilenet_v2.pth")
    torch.manual_seed(0)
    file = folder / f"{spelled(name)}.pt"
    if file.exists():
        return file
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # where a large one is drawn in no time
        if name.startswith("timm:"):
            import timm

            net = timm.create_model(name.removeprefix("timm:"))
        elif name in CLIP:
            embed, size, layers, width, patch = CLIP[name][1]
            net = toy.network(name) if name.startswith("toy-") else Network(embed, size, layers, width, patch, 77, 49408, 512, 8, 12)
        else:
            net = torchvision.models.get_model(name, weights=None)
    torch.save(net.cpu().state_dict(), file)
    return file


def encoder(args, name, folder, **options):
    weights = random_weights(name, folder)
    return load_model(name, args.device, weights, act="quickgelu" if name in CLIP and not name.startswith("toy-") else None, **options)


# ---- features -----------------------------------------------------------------------------------------------------------


def folder_loader(root, model):
    """ImageFolder, Pillow, two workers, batches of 64, as one writes it oneself."""
    view = model.view
    steps = [T.Resize(view.short, T.InterpolationMode(view.interpolation)), T.CenterCrop(view.size), T.ToTensor()]
    return DataLoader(ImageFolder(root, T.Compose([*steps, T.Normalize(model.mean, model.std)])), 64, num_workers=2)


def folder_loop(root, model, encode):
    with torch.no_grad():
        return torch.cat([encode(x.to(model.device)) for x, _ in folder_loader(root, model)])


def open_clip_network(name, file):
    """The same CLIP in open_clip, float32."""
    from open_clip.model import CLIP as Theirs, CLIPTextCfg, CLIPVisionCfg

    embed, size, layers, width, patch = CLIP[name][1]
    text = CLIPTextCfg(width=64, heads=1, layers=2) if name.startswith("toy-") else CLIPTextCfg()
    net = Theirs(embed, CLIPVisionCfg(layers=layers, width=width, patch_size=patch, image_size=size), text, quick_gelu=True)
    net.load_state_dict(torch.load(file, weights_only=True))
    return net.eval()


def benchmark_loop(root, model, net):
    """CLIP_benchmark's own zero-shot loop with its own defaults; its classifier is random, which costs it nothing."""
    from clip_benchmark.metrics.zeroshot_classification import run_classification

    with contextlib.redirect_stderr(io.StringIO()):
        return run_classification(net, torch.randn(model.width, 10).to(model.device), folder_loader(root, model), model.device.type)[0]


def timm_loop(root, name, file, device):
    """timm's own loader and network, as its validate.py runs them."""
    import timm
    from timm.data import ImageDataset, create_loader, resolve_model_data_config

    net = timm.create_model(name, num_classes=0)
    net.load_state_dict(torch.load(file, weights_only=True), strict=False)
    config = resolve_model_data_config(net.eval().to(device))
    how = {key: config[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")}
    how |= {"batch_size": 64, "use_prefetcher": device == "cuda", "num_workers": 2, "device": torch.device(device)}
    with torch.inference_mode():
        return torch.cat([net(x) for x, _ in create_loader(ImageDataset(str(root)), **how)])


def bare(model, net, count):
    """The forward pass of one resident batch, as often as `count` images take, at the model's precision."""
    x = model.normalise(torch.zeros(model.batch, 3, model.size, model.size, device=model.device))
    with torch.inference_mode(), model.autocast():
        for start in range(0, count, model.batch):
            net(x[: count - start])


def ours(root, model):
    """What the scripts do: list, decode, encode, and keep what was made."""
    images = load_data(str(root), union=True).images(model.view, ["test"])["test"]
    return model.features(images)[0]


def torchvision_network(name, file):
    """torchvision's network without its classifier, float32."""
    net = torchvision.models.get_model(name, weights=None)
    net.load_state_dict(torch.load(file, weights_only=True))
    net.classifier = torch.nn.Identity()
    return net.eval()


def beside_loops(args, folder, name, count, budget):
    """Rows of one encoder: beside the bare forward pass, and beside the loops of others, whose features must be the same."""
    root, kind = fruits(folder / f"fruits-{count}", count)
    model, file, places = encoder(args, name, folder), random_weights(name, folder), root / "test"
    if name in CLIP:
        net = open_clip_network(name, file).to(args.device)
        peers = {"open_clip, ImageFolder, DataLoader(2), float32": lambda: folder_loop(places, model, net.encode_image)}
        if "ViT" in name:
            peers["CLIP_benchmark's loop, which takes 16 bits"] = lambda: benchmark_loop(places, model, net)
    elif name.startswith("timm:"):
        peers = {"timm's loop, 2 workers, float32": lambda: timm_loop(places, name.removeprefix("timm:"), file, args.device)}
    else:
        net = torchvision_network(name, file).to(args.device)
        peers = {PLAIN: lambda: folder_loop(places, model, net)}
    kept = {}

    def keep(key, work, i):
        kept[key] = work()

    model.encode_image(torch.zeros(min(count, model.batch), 3, 100, 100, dtype=torch.uint8))  # warms up
    works = [partial(keep, "ours", partial(ours, root, model)), lambda i: bare(model, model.visual, count)]
    works += [as_usual(partial(keep, peer, work)) for peer, work in peers.items()]
    works += [lambda i: bare(model, model.frozen, count)] * (model.frozen is not model.visual)
    times = in_turns(args, *works, budget=budget)
    what = f"features of {count:,} pictures {kind}, {name}, {str(model.dtype)[6:]}"
    yield rates(what, times[:, [0, 1]], count, "the bare forward pass", either(args, 0.95, 0.9))
    if model.frozen is not model.visual:
        yield rates(what, times[:, [0, -1]], count, "the bare forward pass of the copy that is computed here")
    for i, peer in enumerate(peers, 2):
        if kept[peer].shape == kept["ours"].shape:  # CLIP_benchmark's are logits
            same(kept["ours"], kept[peer])
        yield rates(what, times[:, [0, i]], count, peer, either(args, 2.5, 5))


def same(ours, theirs):
    """Fails where the features of the same pictures by the same weights are others, but for 16 bits."""
    cosine = F.cosine_similarity(ours, theirs.float()).mean().item()
    if cosine < 0.98:
        raise RuntimeError(f"not the same features: cosine {cosine:.3f}")


def features(args, folder):
    """Goals 1 and 2: features, decoding included."""
    timm_name = "timm:vit_small_patch16_224"
    plans = [("mobilenet_v2", 1900, 100), ("ViT-B/32", 300, 40), ("RN101", 300, 50), (timm_name, 300, 30)]
    plans = either(args, plans, [(name, 1900, 8) for name in ("mobilenet_v2", "ViT-B/32", "RN101")])
    for plan in [("mobilenet_v2", 8, 9), ("toy-ViT", 8, 9)] if args.quick else plans:
        yield from beside_loops(args, folder, *plan)


def large(args, folder):
    """Goal 3: pictures as cameras make them, other ones in each round."""
    count, parts = (2, 1) if args.quick else either(args, (999, 3), (360, 2))
    sizes = [(round((1.333 * m * 1e6) ** 0.5), round((m * 1e6 / 1.333) ** 0.5)) for m in ([1.5] if args.quick else np.linspace(1, 12, 36))]
    for part in range(parts):  # each has all sizes
        write_pictures(folder / f"large-{part}/test", count // parts, sizes, 3, len(sizes))
    model, kept = encoder(args, "mobilenet_v2", folder), {}
    net = torchvision_network("mobilenet_v2", random_weights("mobilenet_v2", folder)).to(args.device)

    def mine(i):
        kept["ours"] = ours(folder / f"large-{i}", model)

    def theirs(i):
        kept["theirs"] = folder_loop(folder / f"large-{i}/test", model, net)

    bare(model, model.frozen, min(count, model.batch))
    times = in_turns(args, mine, as_usual(theirs), rounds=either(args, parts, 1), budget=90)
    same(kept["ours"], kept["theirs"])
    what = f"features of {len(times) * (count // parts):,} JPEGs of 1 to 12 megapixels, made, mobilenet_v2"
    yield rates(what, times, count // parts, PLAIN, 3)


# ---- classifiers on features ----------------------------------------------------------------------------------------------


def drawn_features(train, test, classes, width):
    """(x, y, x_test, y_test, captions): as of an encoder, whose features share a large part, and vary within a class as a fruit turns."""
    rng = torch.Generator().manual_seed(0)
    common = 3 * torch.randn(width, generator=rng)
    centres = torch.randn(classes, width, generator=rng)
    turns = torch.randn(8, width, generator=rng)

    def images(n):
        y = torch.arange(classes).repeat_interleave(n)
        turn = torch.randn(len(y), 8, generator=rng) @ turns
        return F.normalize(common + centres[y] + turn + 4 * torch.randn(len(y), width, generator=rng), dim=1), y

    z = F.normalize(centres + 2 * torch.randn(classes, width, generator=rng), dim=1)
    return *images(train), *images(test), z


def probe(args, folder):
    """Goal 4: choosing a penalty on held-out images and fitting anew on all."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import PredefinedSplit

    classes, each, width, penalties = (4, 8, 16, linear_probe.PENALTIES[:4]) if args.quick else (95, 60, 1280, linear_probe.PENALTIES)
    x, y, *_ = (t.to(args.device) for t in drawn_features(each, 1, classes, width))
    held = torch.arange(len(y), device=args.device) % 5 == 0
    mean = x.mean(0)
    scale, found = (x - mean).square().mean().sqrt(), {}

    def mine(i):
        _, _, fits, _ = linear_probe.fit_probe(x, y, [(x[~held], y[~held], x[held], y[held])], mean, scale, classes, False)
        found["ours"] = max(f["val"] for f in fits)

    def theirs(i):
        inputs = ((x - mean) / scale).cpu().numpy(), y.cpu().numpy()
        grid = [1 / (l2 * (~held).sum().item()) for l2 in penalties]
        split = PredefinedSplit(np.where(held.cpu(), 0, -1))
        fit = LogisticRegressionCV(Cs=grid, cv=split, max_iter=200, l1_ratios=(0,), scoring="accuracy", use_legacy_attributes=False)
        fit.fit(*inputs)
        found["theirs"] = fit.scores_.max()

    times = in_turns(args, mine, as_usual(theirs), rounds=either(args, 2, 1), budget=100)
    what = f"linear probe: sweep and refit, {len(y):,} x {width:,}, {classes} classes, drawn; held-out {found['ours']:.4f}"
    yield seconds(what, times, f"scikit-learn's LogisticRegressionCV, same grid and split, {found['theirs']:.4f}", either(args, 5, 50))


def few(args, folder):
    """Goal 5: all draws of all numbers of labels."""
    from sklearn.linear_model import LogisticRegression

    classes, each, width = (4, 6, 16) if args.quick else (95, 63, 1280)
    shots = (1, 4) if args.quick else (1, 2, 4, 8, 16, 32, 64)
    x, y, x_test, y_test, z = drawn_features(each, 20, classes, width)
    here = [t.to(args.device) for t in (x, x_test, y_test)]
    found, seeds = {}, range(5)
    methods = {"linear": lambda x, y: few_shot.linear(x, y, classes)}
    more = {
        "class-mean": lambda x, y: few_shot.class_mean(x, y, classes),
        "tip": lambda x, y: few_shot.tip(x, y, z.to(x), 100.0),
        "text-init": lambda x, y: few_shot.text_init(x, y, z.to(x)),
    }

    def learn(methods):
        return few_shot.learn(methods, here[0], y, *here[1:], shots, seeds)[0].mean()

    def mine(i):
        found["linear"] = learn(methods)

    timed = either(args, seeds, seeds[:1])  # beside a GPU one draw, taken as often as there are draws

    def loop(i):
        right, found["seconds"] = [], 0
        for k in shots:
            began = time.perf_counter()
            for rows in np.unique([few_shot.draw(y.numpy(), k, seed) for seed in timed], axis=0):
                part = x[torch.from_numpy(rows)]
                mean = part.mean(0)
                fit = LogisticRegression(C=1 / (few_shot.L2 * len(rows)), max_iter=2000)
                fit.fit(F.normalize(part - mean, dim=1).numpy(), y[rows].numpy())
                mine = (fit.predict(F.normalize(x_test - mean, dim=1).numpy()) == y_test.numpy()).mean()
                right += [mine] * (len(timed) if k >= each else 1)
            found["seconds"] += (time.perf_counter() - began) * (1 if k >= each else len(seeds) / len(timed))
        found["loop"] = np.mean(right)

    times = in_turns(args, mine, as_usual(loop), budget=50, rounds=either(args, 3, 1))
    times[-1, 1] = found["seconds"]
    what = f"few-shot: linear, {len(shots)} numbers of labels x {len(seeds)} draws, {classes} classes, {width:,} wide, drawn; mean accuracy"
    yield seconds(f"{what} {found['linear']:.4f}", times, f"a loop over scikit-learn {found['loop']:.4f}", either(args, 5, 50))
    times = in_turns(args, mine, lambda i: learn(more), rounds=1)
    yield seconds("few-shot: the same beside its other methods", times, "class-mean, tip and text-init together")


def choosing(args, folder):
    """Goal 6: prompts that are tried out. One template is timed, and taken as often as there are templates."""
    name, count, classes = ("toy-ViT", 16, 5) if args.quick else ("ViT-B/32", 1900, 100)
    pool = [form for t in prompts.POOL for form in (t, prompts.with_type(t))][: 6 if args.quick else None]
    root, kind = fruits(folder / f"fruits-{count}", count)
    model = encoder(args, name, folder)
    images = load_data(str(root), union=True).images(model.view, ["test"])["test"]
    words = [f"{c} {f}" for f in toy.SHAPES for c in toy.COLOURS][:classes]
    y = torch.arange(len(images), device=args.device) % len(words)

    def encode():
        return F.normalize(torch.cat([model.encode_image(x) for x in images.batches(model.batch)]), dim=1)

    def mine(i):
        z = model.classifier(words, pool, "fruit", each=True)
        x = encode()
        prompts.rank(x, y, z, pool), prompts.select(x, y, z)

    def one(i):
        x, z = encode(), model.classifier(words, pool[-1:], "fruit")
        prompts.rank(x, y, z[None], pool[-1:])

    times = in_turns(args, mine, one, rounds=2, budget=60) * [1, len(pool)]
    what = f"prompts: {len(pool)} templates, {len(words)} classes, {len(images):,} pictures {kind}, {name}; choosing included"
    yield seconds(what, times, "pictures and captions encoded for each template (one timed)", either(args, 50, ""))


# ---- training and enlarging -----------------------------------------------------------------------------------------------


def train_bare(net, optimizer, x, y, steps, autocast):
    """Steps on one batch, and nothing else: what no training loop can be faster than."""
    for _ in range(steps):
        with autocast():
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wait(x.device.type)


def beside_bare(args, folder, data, name, method, steps):
    """(what, times): a step of finetune.py on one encoder, and a bare one; of so many that what a run begins with hardly counts."""
    batch, steps = (4, 1) if args.quick else (32, steps)
    command = ["finetune.py", "--data", data, "--model", name, "--weights", random_weights(name, folder), "--method", method]
    command += ["--device", args.device] + ["--act", "quickgelu"] * (name in CLIP and not name.startswith("toy-"))
    sys.argv = [str(part) for part in command]
    tuned = finetune.arguments()
    tuned.batch = None
    loaded, model = load(tuned)
    tuned.head = "random" if method == "ml" else None
    images = hold_out(loaded.images(model.view), 0)
    train = images["train"]
    net = finetune.Classifier(model.visual, finetune.first_head(tuned, loaded, model, images, {}, {})(0).to(model.device))
    x = model.normalise(torch.rand(batch, 3, model.size, model.size, device=model.device))
    y, read = torch.arange(batch, device=model.device) % len(loaded.classes), finetune.loader(train, 0)

    def again(rows, epoch):
        return read(rows % len(train), epoch)

    def optimizer():
        return torch.optim.AdamW(finetune.parameter_groups(net, tuned.lr, tuned.head_lr, tuned.decay), fused=True)

    times = []
    for _ in range(1 if args.quick else 3):
        legs = half_epochs(again, steps * batch, batch, 1, 0)
        how = finetune.train_step(net, model), lambda: 0.0, model
        history, _ = fit(net, optimizer(), legs, *how, prepare=finetune.preparation(model))
        net.train()  # with dropout, where there is some
        began = time.perf_counter()
        train_bare(net, optimizer(), x, y, steps, model.autocast)
        times.append((history[-1]["busy"] / steps, (time.perf_counter() - began) / steps))
    what = f"a step of finetune.py --method {method}, {name}, {batch} images, {steps} steps"
    return what, np.array(times[0 if args.quick else either(args, 0, 1) :])  # in its first steps a GPU looks for the best kernels


def training(args, folder):
    """Goal 7: a step of finetune.py, which also augments, clips gradients and looks whether all is finite."""
    data = folder / "small"
    write_pictures(data / "train", 64, [(100, 100)])
    write_pictures(data / "test", 8, [(100, 100)])
    plans = either(args, [("toy-RN", "cs", 60), ("toy-ViT", "cs", 60)], [("toy-ViT", "cs", 200), ("ViT-B/32", "cs", 100)])
    plans += either(args, [("mobilenet_v2", "ml", 6), ("squeezenet1_1", "ml", 18)], [("mobilenet_v2", "ml", 100)])
    for plan in plans[:1] if args.quick else plans:
        with contextlib.redirect_stdout(io.StringIO()):
            what, times = beside_bare(args, folder, data, *plan)
        yield seconds(what, times, "forward, backward and optimizer on a resident batch", either(args, 1.1, 1.08), min)


def enlarging(args, folder):
    """Goal 8: `upsample.py apply` beside the same generator on one image at a time."""
    count, blocks, width = (2, 1, 8) if args.quick else (either(args, 32, 256), 16, 64)
    write_pictures(folder / "low/test", count, [(100, 100)], 2, count)
    torch.manual_seed(0)
    net = upsample.Generator(blocks, width)
    torch.nn.init.normal_(net.conv3[0].weight, std=0.002)
    weights = folder / "generator.safetensors"
    with contextlib.redirect_stdout(io.StringIO()):
        save_weights(weights, {f"srgan.{key}": tensor for key, tensor in net.state_dict().items()}, {})
    net.eval().to(args.device)
    shown = {}

    def mine(i):
        sys.argv = ["upsample.py", "apply", "--data", str(folder / "low"), "--weights", str(weights), "--size", "224", "--to", "made"]
        sys.argv += ["--device", args.device]
        upsample.main()
        return look

    def look():
        shown["ours"] = [np.asarray(Image.open(file)).astype(int) for file in sorted(Path("made").rglob("*.png"))]

    def theirs(i):
        shown["theirs"] = []
        for file in sorted((folder / "low").rglob("*.jpg")):
            x = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None].to(args.device)
            with torch.no_grad():
                y = net(x / 255).mul(255).clamp(0, 255).round().to(torch.uint8)[0].permute(1, 2, 0).cpu().numpy()
            large = Image.fromarray(y).resize((224, 224), Image.BICUBIC)
            large.save(f"{file.stem}.png")
            shown["theirs"].append(np.asarray(large).astype(int))

    times = in_turns(args, mine, as_usual(theirs), budget=60)
    apart = max(np.abs(a - b).max() for a, b in zip(shown["ours"], shown["theirs"]))
    what = f"upsample.py apply, SRGAN of {blocks} x {width}, 100 to 224 px, from file to file"
    yield rates(what, times, count, f"one image at a time, float32, at most {apart}/255 apart", either(args, 3, 20))


# ---- whole commands -------------------------------------------------------------------------------------------------------


def starting(args, folder):
    """Goal 9: how long a script takes before it does anything, beside the imports that everything of this kind needs."""
    random_weights("toy-ViT", folder)
    toy.write_data(folder / "data/tiny", toy.TOY[:4], 8, 8)
    script = [sys.executable, ROOT / "zero_shot.py"]
    run = [*script, "--data", "tiny", "--model", "toy-ViT", "--weights", "toy-ViT.pt", "--device", args.device]
    works = [*script, "--help"], run, [sys.executable, "-c", "import torch, torchvision"]
    times = []
    for _ in range(6):
        times.append([])
        for work in works:
            began = time.perf_counter()
            subprocess.run([str(part) for part in work], cwd=folder, check=True, capture_output=True)
            times[-1].append(time.perf_counter() - began)
    times = np.array(times[1:])  # the first fills the caches
    first, second, imports = np.median(times, 0)
    more, beside = np.median(times[:, 1] - times[:, 2]), f"import torch, torchvision: {imports:.2f} s"
    yield row("start: zero_shot.py --help; ratio is seconds", f"{first:.2f} s", beside, first, 0.3, min, len(times))
    yield row("start: zero_shot.py, all cached; ratio is seconds more", f"{second:.2f} s", beside, more, 0.7, min, len(times))


GROWTH = """
import json, re, sys, threading, time
sys.path.insert(0, sys.argv[1])
import torch
from common import load_data, load_model

def own():  # memory without the pictures, which lie in a mapped file that the system may drop
    return int(re.search(r"RssAnon:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024

def watch():
    while not done.wait(0.02):
        peaks.append(own())

model = load_model("toy-RN", sys.argv[2], "toy-RN.pt")
model.encode_image(torch.zeros(256, 3, 64, 64, dtype=torch.uint8))
done, peaks = threading.Event(), [own()]
thread = threading.Thread(target=watch)
thread.start()
began = time.perf_counter()
model.features(load_data("many", union=True).images(model.view, ["test"])["test"])
seconds = time.perf_counter() - began
done.set()
thread.join()
print("\\n" + json.dumps([seconds, max(peaks)]))
"""


def growth(args, folder):
    """Goal 10: time an image, peak memory and a second run, of more and more images, each in a process of its own."""
    counts, found = [1000, 10_000, 100_000][: 3 if args.long else 2], {}
    for count in counts:
        place = folder / f"{count}"
        write_pictures(place / "many/test", count, [(64, 64)], 10)
        random_weights("toy-RN", place)
        rounds = []
        for _ in range(1 if count > 10_000 or time.perf_counter() > args.until else 2):
            shutil.rmtree(place / "cache", ignore_errors=True)
            for _ in ("cold", "cached"):
                command = [sys.executable, "-c", GROWTH, ROOT, args.device]
                run = subprocess.run(command, cwd=place, check=True, capture_output=True, text=True)
                rounds.append(json.loads(run.stdout.splitlines()[-1]))
        (cold, memory), (cached, _) = np.median(np.reshape(rounds, (-1, 2, 2)), 0)
        found[count] = 1e6 * cold / count, memory, 1e6 * cached / count, len(rounds) // 2
    kinds = ("time an image", "µs"), ("peak memory but for mapped pictures", "MB"), ("second run, an image", "µs")
    for count in counts[1:]:
        for (what, unit), many, few in zip(kinds, found[count], found[1000]):
            beside = f"1,000 pictures: {few:,.0f} {unit}"
            yield row(f"toy-RN, {count:,} pictures of 64 px: {what}", f"{many:,.0f} {unit}", beside, many / few, 1.1, min, found[count][3])


# ---- what it comes from -----------------------------------------------------------------------------------------------------


def pieces(args, folder):
    """What the above comes from: enlarging, precision, batches and threads, each beside the plain way."""
    count = 8 if args.quick else 256
    rng = np.random.default_rng(0)
    pictures = np.stack([np.asarray(smooth(rng, 100, 100)) for _ in range(count)])
    x, shown = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(args.device), {}

    def floats(i):
        F.interpolate(x.float(), size=(224, 224), mode="bicubic", antialias=True).clamp(0, 255).round().to(torch.uint8)

    def pillow(i):
        shown["pillow"] = np.stack([np.asarray(Image.fromarray(a).resize((224, 224), Image.BICUBIC)) for a in pictures])

    def mine(i):
        shown["ours"] = upsample.upsample(x, 224).permute(0, 2, 3, 1).cpu().numpy()

    mine(0)
    times = in_turns(args, mine, floats, pillow, rounds=5)
    apart = np.abs(shown["ours"].astype(int) - shown["pillow"]).max()
    yield rates("enlarging 100 to 224 px in batches of uint8", times[:, :2], count, "in floats")
    yield rates("the same", times[:, [0, 2]], count, f"Pillow, at most {apart}/255 apart")

    for name in ("toy-ViT",) if args.quick else ("ViT-B/32", "mobilenet_v2"):
        model, plain = (encoder(args, name, folder, precision=p) for p in ("auto", "float32"))
        small, big = ([torch.randint(256, (n, 3, model.size, model.size), dtype=torch.uint8)] * m for n, m in ((32, 4), (128, 1)))

        def encode(model, batches, i):
            for batch in batches:
                model.encode_image(batch)

        encode(model, small, 0)
        works = partial(encode, model, small), partial(encode, plain, small), partial(encode, model, big)
        times = in_turns(args, *works, budget=20)
        yield rates(f"{name}: {str(model.dtype)[6:]}, batches of 32", times[:, :2], 128, "float32")
        yield rates(f"{name}: batches of 32", times[:, [0, 2]], 128, "of 128")

    write_pictures(folder / "decoded/test", count, [(500, 400)], 4, count)
    files = sorted((folder / "decoded").rglob("*.jpg"))
    cached = encoder(args, "mobilenet_v2", folder).view
    times = in_turns(
        args,
        lambda i: load_data(str(folder / "decoded"), union=True).images(cached, ["test"]),
        lambda i: [read_image(f, cached) for f in files],
    )
    yield rates("decoding JPEGs of 500 x 400 to 224 px by processes, checked and kept", times, count, "one at a time, not kept")


def network_speed(args, folder, name, count):
    """Rows of one encoder on a GPU: from decoded pixels beside bare; and the share of what the GPU can do in 16 bits."""
    model = encoder(args, name, folder)
    images = load_data(str(folder / "decoded"), union=True).images(model.view, ["test"])["test"]
    images = images.take(np.arange(len(images)) < count)
    with FlopCounterMode(display=False) as counter:
        bare(model, model.frozen, model.batch)
    times = in_turns(args, lambda i: model.features(images), lambda i: bare(model, model.frozen, count), budget=3)
    what = f"features of {count:,} decoded pictures of {images.pixels.shape[1]} px, {name}, {str(model.dtype)[6:]}"
    yield rates(what, times[:, :2], count, "the bare forward pass", 0.9)
    flops = counter.get_total_flops() / model.batch * count / np.median(times[:, :2], 0) / 1e12
    peak = products_per_second(args) / 1e12
    ours, theirs = (f"{f:,.0f} TFLOP/s" for f in flops)
    yield row(f"{name}: its share of {peak:,.0f} TFLOP/s, which large products of matrices reach", ours, f"bare: {theirs}", flops[0] / peak)


def products_per_second(args):
    """Floating-point operations a second in products of 8,192 x 8,192 16-bit numbers."""
    n, times = 64 if args.quick else 8192, []
    a, b = torch.randn(2, n, n, dtype=torch.bfloat16, device=args.device)
    for _ in range(12):
        wait(args.device)
        began = time.perf_counter()
        a @ b
        wait(args.device)
        times.append(time.perf_counter() - began)
    return 2 * n**3 / np.median(times[2:])


def networks(args, folder):
    """What encoders of the usual sizes do on a GPU, and what keeps them from doing more."""
    write_pictures(folder / "decoded/test", 64 if args.quick else 8192, [(256, 256)], 4)
    plans = dict.fromkeys(("RN101", "ViT-B/32", "resnet101"), 8192) | {"ViT-L/14": 4096, "efficientnet_b7": 512}
    for plan in [("toy-ViT", 64)] if args.quick else plans.items():
        yield from network_speed(args, folder, *plan)


GOALS = {
    "features": features, "large": large, "probe": probe, "few-shot": few, "prompts": choosing, "training": training,
    "enlarging": enlarging, "start": starting, "growth": growth, "pieces": pieces, "networks": networks,
}  # fmt: skip


ON_GPU = ("features", "large", "probe", "few-shot", "prompts", "training", "enlarging", "networks")
ON_CPU = tuple(part for part in GOALS if part != "networks")


def machine(device):
    """One line on what all of this ran on."""
    name = ""
    with contextlib.suppress(OSError):
        name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    packages = ("torch", "torchvision", "pillow", "timm", "open_clip_torch", "clip_benchmark", "scikit-learn")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    cores = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores of {name or platform.machine()}"
    cores = f"{torch.cuda.get_device_name()}, {cores}" if device == "cuda" else cores
    return f"{datetime.date.today()}, {cores}, load before {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {versions}"


def table(rows):
    lines = ["| what | here | beside it | rounds | ratio | goal | |", "|---|---|---|---|---|---|---|"]
    return "\n".join(lines + ["| {what} | {ours} | {beside} | {rounds} | {ratio} | {goal} | {held} |".format(**r) for r in rows]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GOALS, metavar="PART", help="some of: %(choices)s")
    parser.add_argument("--device", choices=HEADINGS, default="cpu", help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round of next to nothing, to see that it runs (no)")
    parser.add_argument("--long", action="store_true", help="100,000 images too (no)")
    parser.add_argument("--made", type=float, metavar="SECONDS", help="how long `make` took on toy, measured by hand")
    parser.add_argument("--to", type=Path, metavar="FILE", help="rewrite the table of this page (only printed)")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    about, rows, failed, argv, began = machine(args.device), [], [], sys.argv, time.perf_counter()
    args.until = began + 60 * MINUTES
    print(about, flush=True)
    for name in args.only or (ON_GPU if args.device == "cuda" else ON_CPU):
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows += GOALS[name](args, Path(folder))
            except (Exception, SystemExit) as error:  # the others are measured all the same
                failed.append(name)
                print(f"{name}: not measured: {type(error).__name__}: {error}", flush=True)
        sys.argv = argv
    if args.made:
        rows.append(row("`make`, installed, measured by hand, minutes", f"{args.made / 60:.1f} min", "", args.made / 60, 5, min))
    held, minutes = [r["held"] for r in rows if r["held"]], (time.perf_counter() - began) / 60
    print(f"{minutes:.1f} min; {held.count('held')} of {len(held)} goals held; not measured: {', '.join(failed) or 'nothing'}")
    if args.to:
        heading = HEADINGS[args.device]
        before, _, after = args.to.read_text(encoding="utf-8").partition(heading)
        after = "".join(after.partition("\n## ")[1:])  # the table of another device
        args.to.write_text(f"{before}{heading}\n\n{about}.\n\n{table(rows)}{after}", encoding="utf-8")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
