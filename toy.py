"""The toy world: drawn fruits and three small encoders, so that the whole study runs offline in minutes.

    python toy.py            # data/toy (24 classes, 1,440 + 480 images of 32 px) and weights/toy-*.pt; 3 min on 2 cores

The encoders are pretrained on another distribution than data/toy (cluttered backgrounds, outlines, other light and
sizes) and never see 16 of its 24 colour-shape pairs. toy-ViT and toy-RN are real CLIP networks, trained contrastively on
image-caption pairs; toy-imagenet is the visual ResNet of toy-RN trained on class labels only, the "ImageNet" of this
world. What exists is kept; delete it to have it made again.
"""

import argparse
import colorsys
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

from common import CLIP_COLOURS, F, clip_tokens, file_sha256, lock, nn, part_of_clip, pick_device, save_tensors, torch


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--parent", type=int, metavar="PROCESS", help="end when this process, which must be the caller, has ended")
    return parser.parse_args()


if __name__ == "__main__":
    arguments()  # here already, because --help and a slip of the pen need nothing of what follows

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

COLOURS = {  # hue, saturation, value
    "red": (0.98, 0.82, 0.82), "orange": (0.075, 0.88, 0.95), "yellow": (0.145, 0.80, 0.95), "green": (0.31, 0.68, 0.66),
    "blue": (0.61, 0.68, 0.72), "purple": (0.77, 0.58, 0.58), "pink": (0.92, 0.42, 0.93), "brown": (0.065, 0.62, 0.48),
}  # fmt: skip
SHAPES = ("apple", "pear", "banana", "grape", "lemon", "cherry", "melon", "pepper", "strawberry", "pumpkin", "plum", "fig")
# two colours of each shape are in data/toy ...
_c = list(COLOURS)
TOY = [f"{_c[(3 * i + 4 * k + i // 4) % 8]} {shape}" for i, shape in enumerate(SHAPES) for k in (0, 1)]
SEEN = TOY[::3]  # ... and of these 24 the encoders see 8 in pretraining, 16 never
PRETRAINED = [p for s in SHAPES for p in (f"{c} {s}" for c in COLOURS) if p not in TOY or p in SEEN]
TRAITS = ("small", "large", "blurry", "dark", "bright", "many", "tilted", "hidden", "spotted", "plain", "cluttered")
TEMPLATES = (  # a caption is true of a picture when the picture has every trait that the template names
    "a photo of a {}.", "a picture of a {}.", "an image of a {}.", "a {}.", "a photo of a {}, a type of fruit.", "a photo of one {}.",
    "the {}.", "a photo of a small {}.", "a small {}.", "a photo of a large {}.", "a large {}, a type of fruit.",
    "a blurry photo of a {}.", "a blurry {}.", "a dark photo of a {}.", "a dark picture of a {}.", "a bright photo of a {}.",
    "a photo of many {}.", "many {}.", "a photo of a tilted {}.", "a tilted {}.", "a photo of a hidden {}.", "a spotted {}.",
    "a photo of a spotted {}.", "a photo of a {} on a plain background.", "a cluttered photo of a {}.",
    "a blurry photo of a small {}.", "a dark photo of a large {}.",
)  # fmt: skip
HELD_OUT = (  # never trained on, for prompts to choose among
    "a photo of my {}.", "a good photo of a {}.", "a small picture of a {}, a type of fruit.", "a drawing of a {}.",
    "an image of the large {}.", "a blurry picture of many {}.", "a bright {}, a type of fruit.",
)  # fmt: skip
# how hard this world is: so that zero-shot, a 1-shot probe and a full probe come out far apart (make check)
SIZES, PLAIN, CLUTTER = (0.6, 0.95), 0.4, 4  # of a fruit, in half canvases; share without clutter; pieces of it, below this
MANY, HIDDEN, SPOTTED, BLURRY = 0.10, 0.04, 0.10, 0.15  # shares of the pictures
CAST, NOISE = 0.06, 5  # spread of the light's colour; of the sensor's noise, at most, in grey levels
IMAGES, BATCH = 9600, 64  # pictures to pretrain on
PLANS = (("toy-ViT", 6, 5e-4), ("toy-RN", 4, 5e-4), ("toy-imagenet", 4, 1e-3))  # epochs, peak learning rate
CANVAS = 128  # pictures are drawn at this size and reduced
GRID = np.stack(np.meshgrid(*[np.linspace(-1, 1, CANVAS, dtype=np.float32)] * 2), -1)  # (CANVAS, CANVAS, 2)


# ---- drawing ------------------------------------------------------------------------------------------------------


def silhouettes(shape):
    """The outlines of a fruit: polygons (K, 2), x to the right, y down, of about unit radius."""
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    c, s = np.cos(t), np.sin(t)
    up = (1 - s) / 2  # 1 at the top, 0 at the bottom

    def disc(x, y, r):
        return np.stack([x + r * c, y + r * s], 1)

    def dent(at, width):
        return np.exp(-(((t - at * np.pi) / width) ** 2))

    if shape == "apple":
        r = 0.92 - 0.30 * dent(1.5, 0.3) - 0.10 * dent(0.5, 0.3) + 0.06 * up
        return [np.stack([r * c, r * s], 1)]
    if shape == "pear":
        return [np.stack([c * (0.72 - 0.40 * up**1.1), s * 1.05], 1)]
    if shape == "banana":
        a = np.linspace(0.12 * np.pi, 0.88 * np.pi, 30)
        half = 0.20 * np.sin((a - 0.12 * np.pi) / 0.76) ** 0.6 + 0.03
        arc = [np.stack([np.cos(a) * (1 + w), np.sin(a) * (1 + w) - 0.65], 1) for w in (half, -half)]
        return [np.concatenate([arc[0], arc[1][::-1]])]
    if shape == "grape":
        spots = ((-0.5, -0.5), (0, -0.55), (0.5, -0.5), (-0.28, -0.1), (0.28, -0.1), (0, 0.3), (0.02, 0.68))
        return [disc(x, y, 0.33) for x, y in spots]
    if shape == "cherry":
        return [disc(-0.48, 0.45, 0.42), disc(0.48, 0.52, 0.42)]
    if shape == "lemon":
        return [np.stack([c * (0.85 + 0.28 * np.abs(c) ** 9), s * 0.62], 1)]
    if shape == "melon":
        return [np.stack([c, s * 0.88], 1)]
    if shape == "pepper":
        r = 0.80 + 0.10 * np.cos(3 * (t - 0.5 * np.pi)) - 0.22 * dent(1.5, 0.25)
        return [np.stack([r * c * (0.72 + 0.28 * up), r * s * 1.2], 1)]
    if shape == "strawberry":
        return [np.stack([c * (0.30 + 0.62 * up**0.7), s * 0.95], 1)]
    if shape == "pumpkin":
        return [np.stack([c * 1.05 * (1 + 0.05 * np.abs(np.sin(3 * t))), s * 0.72 * (1 + 0.06 * np.cos(8 * t))], 1)]
    if shape == "plum":
        return [np.stack([c * 0.76, s * 0.90], 1)]
    return [np.stack([c * (0.95 - 0.86 * up**1.6), s * 0.92], 1)]  # fig


@cache
def details(shape):
    """What is drawn on top of a fruit: (kind, points), the kinds being stem, leaf, seed and groove."""

    def groove(k, height):
        return "groove", [(k * math.cos(a), height * math.sin(a)) for a in np.linspace(-1.3, 1.3, 7)]

    return {
        "apple": [("stem", [(0, -0.75), (0.08, -1.2)])],
        "pear": [("stem", [(0, -0.75), (0.08, -1.2)])],
        "cherry": [("stem", [(-0.45, 0.05), (-0.05, -1.0)]), ("stem", [(0.45, 0.12), (-0.05, -1.0)])],
        "grape": [("stem", [(0, -0.8), (0, -1.15)])],
        "pepper": [("leaf", [(0, -0.72), (0, -1.12)])],
        "fig": [("stem", [(0, -0.85), (0, -1.1)])],
        "plum": [groove(0.35, 0.85)],
        "melon": [groove(k, 0.85) for k in (-0.6, -0.2, 0.2, 0.6)],
        "pumpkin": [("stem", [(0, -0.65), (0.12, -1.0)])] + [groove(k, 0.68) for k in (-0.7, -0.35, 0, 0.35, 0.7)],
        "strawberry": [("leaf", [(x, y), (0, -0.62)]) for x, y in ((-0.5, -0.85), (0.5, -0.85), (0, -1.05))]
        + [("seed", [p]) for p in ((-0.35, -0.3), (0.1, -0.4), (0.4, -0.15), (-0.1, 0), (0.15, 0.35), (-0.25, 0.3))],
    }.get(shape, [])


def clutter(rng, pen, pieces):
    """Boxes, discs and strokes of any colour behind the fruit."""
    for _ in range(pieces):
        x, y = rng.integers(-20, CANVAS, 2).tolist()
        w, h = rng.integers(8, 60, 2).tolist()
        colour = tuple(rng.integers(60, 256, 3).tolist())
        kind = rng.integers(3)
        if kind == 0:
            pen.rectangle([x, y, x + w, y + h], colour)
        elif kind == 1:
            pen.ellipse([x, y, x + w, y + h], colour)
        else:
            pen.line([x, y, x + w, y + h - 30], colour, int(rng.integers(1, 8)))


def fruit(rng, pen, mask, shape, fill, outline, scale, tilt, centre):
    """One fruit on the canvas, and its silhouette on the mask."""
    turn = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    form = turn @ np.diag(rng.uniform(0.8, 1.2, 2)) @ np.diag([rng.choice([-1, 1]), 1])
    dark = tuple(int(v * rng.uniform(0.2, 0.6)) for v in fill)
    w = max(2, int(9 * scale))

    def place(points):
        return [tuple(p) for p in (np.asarray(points) @ form.T * scale + centre + 1) * CANVAS / 2]

    for polygon in silhouettes(shape):
        points = place(polygon * (1 + rng.normal(0, 0.02, (len(polygon), 1))))
        pen.polygon(points, fill)
        mask.polygon(points, 255)
        if outline or shape == "grape":
            pen.line([*points, points[0]], dark, max(outline, 1))
    for kind, points in details(shape):
        points = place(points)
        if kind == "stem":
            pen.line(points, (90, 62, 30), w)
        elif kind == "leaf":
            pen.line(points, (50, 125, 45), 2 * w)
        elif kind == "groove":
            pen.line(points, tuple(int(v * 0.72) for v in fill), w)
        else:
            x, y = points[0]
            pen.ellipse([x - w / 3, y - w / 3, x + w / 3, y + w / 3], (240, 220, 120))


def noise(rng, cells):
    """Smooth noise (CANVAS, CANVAS, 1) in -.5 ... .5 with about `cells` bumps a side."""
    field = Image.fromarray(rng.random((cells, cells), np.float32)).resize((CANVAS, CANVAS), Image.BICUBIC)
    return np.asarray(field)[..., None] - 0.5


def draw(rng, name, cluttered):
    """One picture of e.g. "green apple": uint8 (S, S, 3), S = 64 cluttered, 32 on white; and the set of its traits."""
    colour, shape = name.split()
    uniform = rng.uniform
    traits = set()
    hue, saturation, value = COLOURS[colour] + rng.normal(0, (0.02, 0.10, 0.10))
    fill = tuple(int(255 * v) for v in colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1)))

    # what is behind
    ground = tuple((rng.integers(90, 246, 3) if cluttered else 255 - rng.integers(0, 12, 3)).tolist())
    canvas, mask = Image.new("RGB", (CANVAS, CANVAS), ground), Image.new("L", (CANVAS, CANVAS), 0)
    pen = ImageDraw.Draw(canvas)
    if cluttered:
        pieces = 0 if rng.random() < PLAIN else rng.integers(1, CLUTTER)
        clutter(rng, pen, pieces)
        traits |= {"plain"} if pieces == 0 else {"cluttered"} if pieces > 1 else set()

    # the fruit, or several
    count = rng.integers(2, 5) if rng.random() < MANY else 1
    scale = uniform(0.34, 0.46) if count > 1 else uniform(*SIZES)
    tilt = rng.normal(0, 0.2) if rng.random() < 0.75 else uniform(-1.1, 1.1)
    outline = int(rng.integers(0, 5 if cluttered else 2))
    room = max(0, 1 - scale) * (0.9 if cluttered or count > 1 else 0.5)
    for _ in range(count):
        centre = uniform(-room, room, 2)
        fruit(rng, pen, ImageDraw.Draw(mask), shape, fill, outline, scale, tilt + rng.normal(0, 0.3) * (count > 1), centre)
    traits |= {"many"} if count > 1 else {"small"} if scale < 0.66 else {"large"} if scale > 0.82 else set()
    traits |= {"tilted"} if abs(tilt) > 0.5 else set()

    # light and skin
    pixels = np.asarray(canvas, np.float32) / 255
    skin = np.asarray(mask, np.float32)[..., None] / 255
    angle = uniform(0, 2 * np.pi)
    shade = 1 + uniform(0.1, 0.45) * (GRID @ np.float32([math.cos(angle), math.sin(angle)]))[..., None]
    shade = shade + uniform(0, 0.5) * noise(rng, 5) + uniform(0, 0.4) * noise(rng, 24)
    if rng.random() < SPOTTED:
        traits.add("spotted")
        shade = np.where(noise(rng, int(rng.integers(10, 18))) > 0.22, shade * 0.5, shade)
    pixels = pixels * (1 - skin) + skin * np.clip(pixels * shade, 0, 1)

    # something in front of it
    if rng.random() < HIDDEN:
        traits.add("hidden")
        angle, start = uniform(0, 2 * np.pi), uniform(0.15, 0.6) * scale
        along = (GRID - centre) @ np.array([math.cos(angle), math.sin(angle)])
        band = (along > start) & (along < start + uniform(0.2, 1.2))
        pixels[band] = np.array(rng.integers(0, 256, 3) if cluttered else ground) / 255

    # the camera
    gain = rng.choice([1, uniform(0.35, 0.65), uniform(1.2, 1.6)], p=[0.6, 0.2, 0.2])
    traits |= {"dark"} if gain < 1 else {"bright"} if gain > 1 else set()
    pixels = np.clip(pixels * gain * (1 + rng.normal(0, CAST, 3)), 0, 1)
    image = Image.fromarray(np.uint8(pixels * 255))
    if rng.random() < BLURRY:
        traits.add("blurry")
        image = image.filter(ImageFilter.GaussianBlur(uniform(2, 3.5)))
    if cluttered and rng.random() < 0.6:  # some are shrunk and re-enlarged, as data/toy is when a model sees it
        small = int(rng.integers(28, 56))
        image = image.resize((small, small), Image.BOX)
    size = 64 if cluttered else 32
    pixels = np.asarray(image.resize((size, size), Image.BICUBIC)) + rng.normal(0, uniform(0, NOISE), (size, size, 3))
    return np.uint8(np.clip(pixels, 0, 255)), traits


def draw_numbered(seed, number, name, cluttered):
    """Picture `number` of a world: the same whoever draws it, and in whatever order."""
    return draw(np.random.default_rng([seed, number]), name, cluttered)


def end_after(wait):
    """End this process when wait() returns: a parent that is killed takes none with it, and its workers would wait for work for ever."""

    def watch():
        wait()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with_caller():
    """End this worker soon after the process it works for, which need not be the one that has started it."""
    end_after(multiprocessing.parent_process().join)


def end_with(parent):
    """End this process soon after its parent, if that has this number: elsewhere than on POSIX a launcher may stand between them."""

    def wait():
        while os.getppid() == parent:
            time.sleep(0.5)

    if os.name == "posix":
        end_after(wait)


def draw_many(names, cluttered, seed):
    """[(pixels, traits)] of one picture for each name, on all cores."""
    work = partial(draw_numbered, seed, cluttered=cluttered)
    with ProcessPoolExecutor(initializer=end_with_caller) as pool:
        drawn = pool.map(work, range(len(names)), names, chunksize=64)
        part_of_clip("model")  # imported now, and torch with it, because else cores would be idle then
        return list(tqdm(drawn, "drawing", len(names), unit="img", disable=None, leave=False))


def write_data(folder, classes=TOY, train=60, test=20, seed=0):
    """Draw folder/{Training,Test}/<class>/<number>.jpg; `train` and `test` are images a class. Replaces nothing by halves."""
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}-{os.getpid()}")
    for left in folder.parent.glob(f".{folder.name}-[0-9]*"):  # by a run that was killed; main() lets but one run at a time
        shutil.rmtree(left, ignore_errors=True)
    names = [c for c in classes for _ in range(train + test)]
    try:
        for i, (name, (pixels, _)) in enumerate(zip(names, draw_many(names, False, seed))):
            number = i % (train + test)
            path = temporary / ("Training" if number < train else "Test") / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=92)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# ---- encoders -----------------------------------------------------------------------------------------------------


def network(name):
    """Untrained toy-ViT or toy-RN (clip.model.CLIP), or toy-imagenet (the visual half of toy-RN): 64 px in, 64 features out."""
    vision = (4, 64, 8) if name == "toy-ViT" else ((1, 1, 1, 1), 16, None)  # layers, width, patch
    text = {"context_length": 77, "vocab_size": 49408, "transformer_width": 64, "transformer_heads": 1, "transformer_layers": 2}
    net = part_of_clip("model").CLIP(64, 64, *vision, **text)
    for key, parameter in net.visual.named_parameters():
        if key.endswith("bn3.weight"):  # CLIP starts residual blocks at 0, which costs hundreds of steps
            nn.init.ones_(parameter)
    return net.visual if name == "toy-imagenet" else net


def compact(state):
    """A state dict in float16, as OpenAI's own: clip.load goes through float16, so both then hold the same network."""
    return {k: v.half() if v.is_floating_point() else v for k, v in state.items()}


def caption_tokens(words):
    """Tokens (templates, words, 14) of every template with every word; 14 hold the longest caption."""
    tokens = [clip_tokens([t.format(w) for w in words]) for t in TEMPLATES]
    return torch.stack([F.pad(rows, (0, 14 - rows.shape[1])) for rows in tokens])


def true_templates(traits):
    """Boolean (N, templates): which templates are true of pictures with these sets of traits."""
    named = [{t for t in TRAITS if t in template.replace(",", "").replace(".", "").split()} for template in TEMPLATES]
    return np.array([[need <= have for need in named] for have in traits])


def pretrain(name, images, traits, names, epochs, rate, seed=0, batch=BATCH, dtype=None):
    """Train one encoder on uint8 images (N, 64, 64, 3) with their sets of traits and names; returns its float16 state dict.

    CLIP's symmetric contrastive loss over the batch (Radford et al. 2021) on captions drawn anew each time, plus the same
    image-to-caption loss against one caption of every class, of every colour ("a photo of a red fruit.") and of every shape.
    toy-imagenet: cross-entropy of a linear layer on top, which is thrown away.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = network(name).to(memory_format=torch.channels_last)
    visual = getattr(net, "visual", net)
    contrastive = net is not visual
    known = sorted(set(names))
    colours, shapes = (sorted({n.split()[i] for n in known}) for i in (0, 1))
    targets = [[known.index(n), colours.index(n.split()[0]), shapes.index(n.split()[1])] for n in names]
    targets = torch.tensor(targets).T  # (3, N)
    if contrastive:
        tokens = caption_tokens(known)
        everything = torch.cat([tokens, caption_tokens([f"{c} fruit" for c in colours]), caption_tokens(shapes)], 1)
        allowed = true_templates(traits)
        neutral = np.flatnonzero(true_templates([set()])[0])
    else:
        head = nn.Linear(64, len(known))

    parameters = [*net.parameters()] + ([] if contrastive else [*head.parameters()])
    decayed, kept = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": kept, "weight_decay": 0.0}], rate, fused=True)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.15)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in CLIP_COLOURS)
    fast = torch.autocast("cpu", dtype, enabled=dtype not in (None, torch.float32))

    order = [rng.permutation(len(images))[: steps // epochs * batch] for _ in range(epochs)]
    bar = tqdm(np.split(np.concatenate(order), steps), name, unit="step", disable=None, leave=False)
    for rows in bar:
        x = torch.from_numpy(images[rows]).permute(0, 3, 1, 2)
        x = torch.roll(x.flip(3) if rng.random() < 0.5 else x, rng.integers(-4, 5, 2).tolist(), (2, 3))
        y = targets[:, rows]
        with fast:
            f = visual((x / 255 - mean) / std).float()
        if contrastive:
            own = [rng.choice(np.flatnonzero(allowed[row])) for row in rows]
            one = rng.choice(neutral) if rng.random() < 0.5 else rng.integers(len(TEMPLATES))
            with fast:
                z = net.encode_text(torch.cat([tokens[own, y[0]], everything[one]])).float()
            logits = net.logit_scale.exp().clamp(max=100) * F.normalize(f, dim=1) @ F.normalize(z, dim=1).T
            own, *others = logits.split([batch, len(known), len(colours), len(shapes)], 1)
            pairs = torch.arange(batch)
            loss = 0.15 * (F.cross_entropy(own, pairs) + F.cross_entropy(own.T, pairs))
            loss = loss + sum(F.cross_entropy(part, t) for part, t in zip(others, y))
        else:
            loss = F.cross_entropy(head(f), y[0])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    return compact(net.state_dict())


def make_encoder(name, epochs, rate, images, traits, names, seed):
    """Train weights/NAME.pt in a process of its own, on one core: so its numbers do not depend on how many there are."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends this one
    end_with_caller()
    torch.set_num_threads(1)
    if name != PLANS[0][0] and hasattr(os, "nice"):
        os.nice(10)  # on two cores the longest has one for itself: else it would be left alone at the end, and a core idle
    print(f"pretraining weights/{name}.pt on {len(images):,} pictures, {epochs} times", flush=True)
    # of its kernels for attention the plain one takes a quarter less time for a step of so small a network on a CPU
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        state = pretrain(name, images, traits, names, epochs, rate, seed, dtype=pick_device("cpu")[1])
    save_tensors(state, f"weights/{name}.pt")
    print(f"wrote weights/{name}.pt, sha256 {file_sha256(f'weights/{name}.pt')[:8]}", flush=True)


def make(seed):
    """Draw data/toy and train weights/toy-*.pt, whichever is missing."""

    if not Path("data/toy").is_dir():
        Path("data").mkdir(exist_ok=True)
        write_data("data/toy", seed=seed)
        print("drew data/toy", flush=True)
    missing = [(name, *plan) for name, *plan in PLANS if not Path(f"weights/{name}.pt").exists()]
    if missing:
        names = np.random.default_rng(seed).permutation(PRETRAINED * (IMAGES // len(PRETRAINED)))
        images, traits = zip(*draw_many(names.tolist(), True, seed + 1))
        what = np.stack(images), traits, names.tolist(), seed
        running = [multiprocessing.Process(target=make_encoder, args=(*plan, *what), daemon=True) for plan in missing]
        for process in running:  # on fewer cores they take turns: one after the other would leave a core idle at the end
            process.start()
        for process in running:
            process.join()
        if any(process.exitcode for process in running):
            raise SystemExit(1)


def main():
    args = arguments()
    if args.parent:
        end_with(args.parent)
    with lock("data/toy"):  # several scripts may want it at once
        make(args.seed)


if __name__ == "__main__":
    main()
