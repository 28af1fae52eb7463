"""Fine-tuning: train the image encoder too, with a linear layer (ml) or towards its captions (cs), of CLIP or of ImageNet.

    python finetune.py --model toy-RN --method cs --lr 5e-4 --epochs 12   # the toy world: .735 before, .898 after 16 s
    python finetune.py --data fruits360 --model ViT-B/32 --method cs --save best.safetensors
    python finetune.py --load best.safetensors --predict a.jpg b.jpg

An interrupted run goes on where it was when the same command is started again. Copy this file and common.py to use it
elsewhere.

    x    pixels (B, 3, S, S)     f    features (B, D)     z    unit-length class embeddings of the captions (C, D)
"""

import argparse
import json
import math
import time
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torchvision.ops import StochasticDepth

from common import (
    add_flags,
    at_least,
    centre_and_spread,
    class_embeddings,
    clusters,
    counted,
    default_model,
    digest,
    evaluate,
    every_class,
    fail,
    features,
    file_sha256,
    fit,
    hold_out,
    load_data,
    load_model,
    load_splits,
    model_name,
    paired_difference,
    print_metrics,
    print_ranking,
    print_setup,
    progress,
    read_checkpoint,
    read_metadata,
    read_pictures,
    read_templates,
    save_weights,
    snapshot,
    some,
    spelled,
    write_result,
)

# ---- augmentation: one warp for flip, rotation, perspective and upsampling, then blur --------------------------------

TURN = 20  # degrees to either side, at most
BEND = 0.5  # how far perspective moves a corner inwards, at most, in half widths; of every second image
SIGMA = 2 / 224  # of the blur, at most, in widths of the model's input; of every second image
ALPHAS = [i / 10 for i in range(11)]  # of WiSE-FT
SAMPLE = 1024  # training images that tell the mean and the spread of an encoder's features
ROUNDS, STEPS = 5, 8  # of --profile


def draw_augmentation(seed, epoch, count):
    """Homographies (count, 3, 3) from output to input coordinates in -1..1, and blur sigmas (count,) in widths of the picture."""
    u = np.random.default_rng([seed, epoch, 1]).random((count, 12))
    flip = np.where(u[:, 0] < 0.5, -1, 1)
    reach = np.where(u[:, 2] < 0.5, BEND, 0)[:, None, None] * u[:, 3:11].reshape(-1, 4, 2)
    matrices = flips(flip) @ rotations((2 * u[:, 1] - 1) * TURN) @ perspectives(CORNERS * (1 - reach))
    sigmas = np.where(u[:, 11] < 0.5, 2 * u[:, 11] * SIGMA, 0)
    return np.float32(matrices), np.float32(sigmas)


CORNERS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)


def flips(sign):
    """(B, 3, 3): x times sign (B,)."""
    return np.eye(3) * np.stack([sign, np.ones_like(sign), np.ones_like(sign)], 1)[:, None]


def rotations(degrees):
    """(B, 3, 3): turn the picture counter-clockwise, about its centre."""
    c, s, zero = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees)), np.zeros_like(degrees)
    return np.stack([c, -s, zero, s, c, zero, zero, zero, zero + 1], 1).reshape(-1, 3, 3)


def perspectives(corners):
    """(B, 3, 3): the picture's corners (upper left, upper right, lower right, lower left) come to lie at (B, 4, 2)."""
    x, y = corners[..., 0], corners[..., 1]  # (B, 4)
    one, zero = np.ones_like(x), np.zeros_like(x)
    u, v = (np.broadcast_to(CORNERS[:, i], x.shape) for i in (0, 1))
    a = np.stack(
        [np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], 2), np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], 2)], 1
    )
    h = np.linalg.solve(a.reshape(-1, 8, 8), np.stack([u, v], 1).reshape(-1, 8, 1))[..., 0]
    return np.concatenate([h, np.ones_like(h[:, :1])], 1).reshape(-1, 3, 3)


def warp(x, matrices, size, mode="bicubic"):
    """Pictures (B, 3, S, S) of values 0..255 seen through homographies (B, 3, 3), as float (B, 3, size, size).

    What lies outside takes one colour a picture, the median of its border, so that a white background stays white.
    """
    border = torch.cat([x[:, :, 0], x[:, :, -1], x[:, :, 1:-1, 0], x[:, :, 1:-1, -1]], 2)
    fill = border.median(2).values[..., None, None].float()  # (B, 3, 1, 1)
    line = (2 * torch.arange(size, device=x.device) + 1) / size - 1
    h = matrices[..., None, None]  # (B, 3, 3, 1, 1)
    p = h[:, :, 0] * line + (h[:, :, 1] * line[:, None] + h[:, :, 2])  # (B, 3, size, size)
    grid = p[:, :2].div_(p[:, 2:]).permute(0, 2, 3, 1)
    return F.grid_sample(x.float() - fill, grid, mode, "zeros", align_corners=False).add_(fill).clamp_(0, 255)


def blur(x, sigmas, radius):
    """Gaussian blur of float (B, 3, S, S) by sigmas (B,) in pixels, cut at `radius` pixels."""
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    kernels = (-0.5 * (offsets / sigmas[:, None]).square()).softmax(1).repeat_interleave(3, 0)  # (3B, 2 radius + 1)
    x = F.pad(x, [radius] * 4, mode="reflect")
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels[:, None, None], groups=len(kernels))
    return F.conv2d(y, kernels[:, None, :, None], groups=len(kernels)).view(len(x), 3, *(s - 2 * radius for s in x.shape[2:]))


def augment(x, matrices, blurred, sigmas, size):
    """uint8 pictures (B, 3, S, S) warped to float (B, 3, size, size), then rows `blurred` blurred by sigmas in widths."""
    with torch.autocast(x.device.type, enabled=False):  # 8 bits are too few for coordinates
        x = warp(x, matrices, size, "bilinear" if x.device.type == "mps" else "bicubic")  # mps has no other
        if len(blurred):
            x[blurred] = blur(x[blurred], sigmas * size, math.ceil(3 * SIGMA * size))
    return x


# ---- methods ----------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """ml: a linear layer on features of unit length, or on features shifted and scaled by constants.

    The constants centre them and give them unit variance over all, so that a learning rate means the same for every
    encoder. weight (C, D) and bias (C,) are for features of unit length, or as they come from the encoder.
    """

    def __init__(self, weight, bias, shift=None, scale=None):
        super().__init__()
        self.unit = shift is None
        if not self.unit:
            self.register_buffer("shift", shift)
            self.register_buffer("scale", scale)
            weight, bias = weight * scale, bias + weight @ shift
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, f):
        return F.linear(F.normalize(f, dim=1) if self.unit else (f - self.shift) / self.scale, self.weight, self.bias)

    def plain(self):
        """(weight, bias) as they were given."""
        if self.unit:
            return self.weight, self.bias
        return self.weight / self.scale, self.bias - self.weight @ (self.shift / self.scale)


class Cosine(nn.Module):
    """cs: cosine similarity with the captions z (C, D), times a temperature that CLIP learnt, as in zero-shot; its cap is CLIP's."""

    def __init__(self, z, logit_scale):
        super().__init__()
        self.register_buffer("z", z)
        self.logit_scale = logit_scale

    def forward(self, f):
        with torch.no_grad():
            self.logit_scale.clamp_(max=math.log(100))
        return self.logit_scale.exp() * F.normalize(f, dim=1) @ self.z.T


class Classifier(nn.Module):
    """An encoder and a head that makes logits (B, C) of its features; `freeze` trains the head alone."""

    def __init__(self, visual, head, freeze=False, train_bn=False):
        super().__init__()
        self.visual, self.head, self.freeze, self.train_bn = visual, head, freeze, train_bn
        visual.requires_grad_(not freeze)
        head.requires_grad_(True)

    def train(self, mode=True):
        """Only what must differ in training does: dropout; and batch norm if `train_bn`, because its statistics drift on few images."""
        super().train(False)
        for module in self.visual.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = mode and self.train_bn
            elif isinstance(module, (nn.Dropout, StochasticDepth)):
                module.training = mode and not self.freeze
        return self

    def forward(self, x):
        f = self.visual(x).float()
        with torch.autocast(x.device.type, enabled=False):  # 8 bits are too few for logits of up to 100
            return self.head(f)


def parameter_groups(net, lr, head_lr, decay):
    """Every trainable tensor of `net` once, as AdamW's groups: biases, norms and other vectors are not decayed."""
    groups = [{"lr": r, "weight_decay": d, "params": []} for r in (lr, head_lr) for d in (decay, 0.0)]
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            kept = parameter.ndim < 2 or name.endswith(("bias_table", "layer_scale", "logit_scale"))
            groups[2 * name.startswith("head.") + kept]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def interpolate(start, end, alpha):
    """Snapshot between two others, exactly `start` at 0 and `end` at 1: WiSE-FT (Wortsman et al. 2022)."""
    return {name: torch.lerp(start[name], t, alpha) if t.is_floating_point() else t for name, t in end.items()}


def predict(head, model, batches):
    """Logits (N, C) on the CPU of uint8 batches (B, 3, S, S)."""
    with torch.no_grad():
        return torch.cat([head(model.encode_image(x)) for x in batches]).cpu()


def train_bare(net, groups, x, y, steps, autocast):
    """Forward, backward and optimizer steps on one resident batch and nothing else: what no training loop can be faster than."""
    optimizer = torch.optim.AdamW(groups, fused=True)
    for _ in range(steps):
        with autocast():
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()  # waits for the device


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "data model weights act prompts type classnames groups seed device precision out")
    parser.add_argument("--method", choices=("ml", "cs"), default="ml", help="linear layer, or captions (%(default)s)")
    parser.add_argument("--head", help="ml starts from: text, random, or a FILE of linear_probe.py --save (text for CLIP, else random)")
    parser.add_argument("--freeze", action="store_true", help="train the head alone, of an encoder as it is")
    parser.add_argument("--epochs", type=at_least(1), default=5, help="(%(default)s)")
    parser.add_argument("--batch", type=at_least(1), default=32, help="images a step (%(default)s)")
    # held-out accuracy from a probe's head at 1e-5 and 1e-4: Simpsons .823 .903 (mobilenet_v2), .790 .823 (squeezenet1_1), 100 Sports
    # .647 .640 (squeezenet1_1; .710 before); 1e-5 is also what is published for CLIP, and on 95 fruits 1e-4 lost what the encoder knew
    parser.add_argument("--lr", type=float, default=1e-5, help="learning rate of the encoder, at its peak (%(default)s)")
    parser.add_argument("--head-lr", type=float, default=1e-3, help="of the head, or of the temperature of cs (%(default)s)")
    parser.add_argument("--decay", type=float, default=0.1, help="weight decay of matrices and filters (%(default)s)")
    parser.add_argument("--train-bn", action="store_true", help="batch norm learns the statistics of the new images")
    parser.add_argument("--no-augment", action="store_true", help="the same images in each epoch")
    parser.add_argument("--seeds", type=at_least(1), default=1, metavar="N", help="repeat with N seeds, from --seed on (%(default)s)")
    parser.add_argument(
        "--save", metavar="FILE.safetensors", help="keep the weights that are best on validation, of the first seed (not kept)"
    )
    parser.add_argument("--restart", action="store_true", help="begin anew where an interrupted run has left a checkpoint")
    parser.add_argument("--profile", action="store_true", help="only time a step, and one without data, augmentation and bookkeeping")
    parser.add_argument("--load", metavar="FILE", help="for --predict: what --save wrote, here or in linear_probe.py")
    parser.add_argument("--predict", nargs="+", metavar="IMAGE", help="name the classes of these pictures")
    args = parser.parse_args()
    started = time.time()
    if bool(args.load) != bool(args.predict):
        parser.error("--load and --predict belong together")
    if args.save and not args.save.endswith(".safetensors"):
        parser.error(f"--save {args.save}: must end in .safetensors")
    if args.method == "cs" and (args.head or args.freeze):
        parser.error("--head and --freeze are for ml: cs has no head but the captions and their temperature")
    if args.freeze and args.train_bn:
        parser.error("--freeze and --train-bn exclude each other")
    if not (0 <= args.lr < 1 and 0 <= args.head_lr < 1 and 0 <= args.decay < 10):
        parser.error("--lr and --head-lr must lie in 0 to 1, --decay in 0 to 10")
    if args.load and (args.head or args.save or args.out):
        parser.error("--load only predicts: --head, --save and --out are for training")

    about, tensors = {}, {}  # of a file of --save, to start from or to predict with
    if file := args.load or (args.head if args.head not in ("text", "random") else None):
        if not Path(file).is_file():
            fail(f"{file}: no such file; --head takes text, random or what linear_probe.py saved, --load what --save wrote")
        about, tensors = read_metadata(file), load_file(file) if file.endswith(".safetensors") else {}
        if "classes" not in about or (args.head and "method" in about):
            fail(f"{file}: not written by --save of linear_probe.py" + ("" if args.head else " or finetune.py"))

    if args.predict:
        whole = "method" in about  # else the head alone
        if whole and (args.weights or args.act):
            fail(f"--load {args.load}: holds its encoder; --weights and --act are for the head of a linear probe")
        weights, act = (args.load, None) if whole else (args.weights, args.act or (args.weights and about.get("act")) or None)
        model = load_model(about["model"], args.device, weights, args.precision, act, about["features"])
        if not whole and model.sha256 != about["sha256"]:
            fail(f"--load {args.load}: belongs to other weights of {model.name}; give them by --weights")
        if about.get("method") == "cs":
            z = class_embeddings(model, json.loads(about["words"]), json.loads(about["prompts"]), about["type"])
            head = Cosine(z, model.net.logit_scale)
        else:
            constants = () if about.get("unit") else (torch.zeros(model.width), torch.ones(()))
            head = Linear(tensors["head.weight"], tensors["head.bias"], *constants)
        pictures = read_pictures(args.predict, model.size)
        logits = predict(head.to(model.device), model, pictures.split(model.batch))
        return print_ranking(args.predict, json.loads(about["classes"]), logits.softmax(1), most=5)

    # what can be mistyped first, what may be downloaded afterwards
    data = load_data(args.data, args.classnames, args.type, args.seed, groups=args.groups)
    given, (args.prompts, chosen_with) = args.prompts, read_templates(args.prompts, data.type)
    args.type, args.model = data.type, args.model or about.get("model") or default_model(args.data)
    if about and model_name(args.model) != about["model"]:
        fail(f"--head {args.head}: of {about['model']}, not of --model {args.model}")
    model = load_model(args.model, args.device, args.weights, args.precision, args.act, about.get("features"))
    if args.method == "ml":
        args.head = args.head or ("text" if model.encode_text else "random")
    if (args.method == "cs" or args.head == "text") and not model.encode_text:
        fail(f"--method cs and --head text: {model.name} has no text side; it takes --method ml and --head random or a FILE")
    if given and args.method == "ml" and args.head != "text":
        fail("--prompts: only --method cs and --head text start from captions")
    if chosen_with:
        print("note: images that validate here may have chosen the prompts too: on them epoch 0 and alpha 0 look too good")
    images = hold_out(load_splits(data, model.size), args.seed)
    source = "images of the val split" if data.splits.get("val") else "held-out training images"
    train, val, test = images.values()
    used = len(train.rows) + len(val.rows)
    every_class(train, data)
    if not len(val.rows):
        fail(f"--data {args.data}: one training image a class, none can be held out to validate with")

    # the head that training starts from
    if args.method == "cs" or args.head == "text":
        z = class_embeddings(model, data.words, args.prompts, data.type)
    else:
        sample = np.linspace(0, len(train.rows) - 1, min(len(train.rows), SAMPLE)).round().astype(int)
        shift, scale = centre_and_spread(features(model, train.take(sample))[0], model)
    if about:  # a head must not have seen what validates or tests here
        same = {"weights": (model.sha256, "sha256"), "activation": (model.act, "act"), "classes": (json.dumps(data.classes), "classes")}
        same["split of the images (--seed, files)"] = digest([i.paths for i in images.values()]), "split"
        if other := [what for what, (value, key) in same.items() if about.get(key) != value]:
            fail(f"--head {args.head}: made with other {', '.join(other)}; make it anew with linear_probe.py --save")

    def first_head(seed):
        if args.method == "cs":
            return Cosine(z, model.net.logit_scale)
        if args.head == "text":
            return Linear(model.logit_scale * z, torch.zeros(len(z)))
        if args.head == "random":
            torch.manual_seed(seed)
            weight = nn.Linear(model.width, len(data.classes)).weight.detach() / scale
            return Linear(weight, -weight @ shift, shift, scale)
        # without a val split the probe's last fit has seen the images that validate here; it has kept another one that has not
        return Linear(*(tensors.get(f"held_out.{part}", tensors[f"head.{part}"]) for part in ("weight", "bias")), shift, scale)

    def load(rows, epoch):
        matrices, sigmas = (numbers[rows] for numbers in augmentation(epoch))
        blurred = sigmas.nonzero()[0]
        x = torch.from_numpy(train.pixels[train.rows[rows]]).permute(0, 3, 1, 2)
        return x, train.labels[rows], *map(torch.from_numpy, (matrices, blurred, sigmas[blurred]))

    def step(batch):
        x, y, matrices, blurred, sigmas = batch
        x = model.inputs(x) if args.no_augment else model.normalise(augment(x, matrices, blurred, sigmas, model.size))
        logits = net(x)
        return F.cross_entropy(logits, y), (logits.argmax(1) == y).float().mean()

    def right(images, state=None):
        """(logits, which images are right) of the network as it is, or in another state."""
        if state:
            net.load_state_dict(state, strict=False)
        batches = progress(images.batches(model.batch), images.name, "batch", -(-len(images.rows) // model.batch))
        logits = predict(net.head, model, batches)
        return logits, logits.numpy().argmax(1) == images.labels.numpy()

    print_setup(data, model, images)
    origin = "" if args.method == "cs" else f" from {args.head}{', encoder frozen' if args.freeze else ''}"
    print(f"{args.method}{origin}: {counted(args.epochs, 'epoch')} of {-(-len(train.rows) // args.batch)} steps", end=" ")
    print(f"of {args.batch} images, learning rates {args.lr:g} and {args.head_lr:g} (head), decay {args.decay:g}")

    names = ("model", "method", "freeze", "epochs", "batch", "lr", "head_lr", "decay", "train_bn", "no_augment", "act", "prompts", "type")
    depends = {f"--{name.replace('_', '-')}": getattr(args, name) for name in names}
    depends |= {"--head": file_sha256(args.head) if about else args.head, "weights": model.sha256, "device": model.device.type}
    depends["files or words of the classes"] = digest([data.fingerprint, train.paths, val.paths, data.words])
    depends["precision"] = str(model.dtype)
    stem = Path(args.out or f"cache/finetune/{data.name}-{spelled(model.name)}-{digest(depends)}.json")
    checkpoints = {seed: stem.with_suffix(f".{seed}.ckpt") for seed in range(args.seed, args.seed + args.seeds)}
    for seed, checkpoint in checkpoints.items() if not args.profile else ():  # all of them before hours go into the first
        if args.restart:
            checkpoint.unlink(missing_ok=True)
        read_checkpoint(checkpoint, depends | {"seed": seed})
    runs = []
    for seed, checkpoint in checkpoints.items():
        augmentation = lru_cache(2)(partial(draw_augmentation, seed, count=len(train.rows)))
        net = Classifier(model.visual, first_head(seed).to(model.device), args.freeze, args.train_bn)
        groups = partial(parameter_groups, net, args.lr, args.head_lr, args.decay)
        loop = {"batch": args.batch, "device": model.device, "dtype": model.dtype, "seed": seed, "what": f"{model.name} {args.method}"}
        if args.profile:
            x = torch.randn(args.batch, 3, model.size, model.size, device=model.device).contiguous(memory_format=torch.channels_last)
            y = torch.arange(args.batch, device=model.device) % len(data.classes)
            again, times = lambda rows, epoch: load(rows % len(train.rows), epoch), []
            for _ in range(ROUNDS):  # in turns, and the fastest of each, because no machine is quiet
                began = time.time()
                train_bare(net, groups(), x, y, STEPS, model.autocast)
                bare = (time.time() - began) / STEPS
                times.append((fit(net, groups(), again, step, lambda: 0.0, STEPS * args.batch, epochs=1, **loop)[2], bare))
            ours, bare = np.min(times, 0)
            print(f"profile: {ours:.4f} s a step of {args.batch} images, {bare:.4f} s bare, ratio {ours / bare:.2f}", end=" ")
            return print(f"(each the fastest of {ROUNDS} times {STEPS} steps)")

        start = snapshot(net)
        loop |= {"epochs": args.epochs, "checkpoint": checkpoint, "about": depends | {"seed": seed}}
        history, best, seconds = fit(net, groups(), load, step, lambda: right(val)[1].mean().item(), len(train.rows), **loop)

        # WiSE-FT: validation picks how far to go from the start to the best, of equals the least; no random head is worth staying near
        val_best = max(row["val"] for row in history)
        wise = {0.0: history[0]["val"], 1.0: val_best}
        if args.head != "random":
            wise = {a: wise[a] if a in wise else right(val, interpolate(start, best, a))[1].mean().item() for a in ALPHAS}
        alphas = [a for a in wise if wise[a] > max(wise.values()) - 1e-9] if args.head != "random" else [1.0]
        tested = {a: right(test, interpolate(start, best, a)) for a in sorted({0.0, alphas[0], 1.0})}
        runs.append({"seed": seed, "history": history, "wise": wise, "alphas": alphas, "tested": tested, "seconds": seconds})
        if seed == args.seed:
            kept = best
        net.load_state_dict(start, strict=False)

    history, wise, alphas, tested = (runs[0][key] for key in ("history", "wise", "alphas", "tested"))
    logits, labels = tested[1.0][0], test.labels
    together = clusters(test)
    m = evaluate(logits, labels, data.classes, together)
    after, before, chosen = (tested[a][1] for a in (1.0, 0.0, alphas[0]))
    top = max(history, key=lambda row: row["val"])  # of equals the first
    metrics = {
        "val": top["val"],
        "best_epoch": top["epoch"],
        **m,
        "before": before.mean().item(),
        "gain": paired_difference(after, before, labels, together),
        "wise": wise if args.head != "random" else None,
        "wise_alpha": alphas[0],
        "test_wise": {"0": before.mean().item(), "chosen": chosen.mean().item(), "1": after.mean().item()},
        "seconds_per_step": np.mean([run["seconds"] for run in runs]).item(),
    }
    values = [run["tested"][1.0][1].mean().item() for run in runs]
    metrics["seeds"] = {"mean": np.mean(values).item(), "std": np.std(values, ddof=1).item() if len(runs) > 1 else None, "values": values}

    print(f"validation      {top['val']:.3f}   on {len(val.rows):,} {source}, best at epoch {top['epoch']:g}", end="; ")
    print(f"before {history[0]['val']:.3f}, last {history[-1]['val']:.3f}")
    if not top["step"]:
        print("note: no epoch was better on validation than the start, which is what is tested and saved")
    if metrics["wise"]:
        as_good = "; as good: " + some([f"{a:g}" for a in alphas[1:]], 9) if alphas[1:] else ""
        print(f"WiSE-FT         {chosen.mean():.3f}   on test, alpha {alphas[0]:g} of validation {wise[alphas[0]]:.3f}{as_good}")
    gain = metrics["gain"]
    print(f"before          {before.mean():.3f}   on test; gain {gain['mean']:+.3f}", end=", ")
    print("95 % interval {:+.3f} to {:+.3f}".format(*gain["ci95"]))
    print_metrics(m)
    if len(runs) > 1:
        print(f"{len(runs)} seeds         {metrics['seeds']['mean']:.3f} ± {metrics['seeds']['std']:.3f} on test; above: seed {args.seed}")
    if args.out:
        rows = [{"seed": run["seed"], **row} for run in runs for row in run["history"]]
        rows += [{"seed": run["seed"], "alpha": a, "val": v} for run in runs if metrics["wise"] for a, v in run["wise"].items()]
        write_result(args.out, args, data, model, images, metrics, started, logits, max(used, chosen_with), rows)
    if args.save:
        net.load_state_dict(kept, strict=False)
        about = {"model": model.name, "features": model.features, "type": data.type, "method": args.method}
        about |= {"labels_used": str(max(used, chosen_with))}
        about |= {k: json.dumps(v) for k, v in (("classes", data.classes), ("words", data.words), ("prompts", args.prompts))}
        about |= {"act": model.act or "quickgelu"} if model.net else {}
        state = model.state_dict()
        if args.method == "ml":
            about |= {"unit": "yes"} if net.head.unit else {}
            state |= zip(("head.weight", "head.bias"), net.head.plain())
        else:
            state["logit_scale"].clamp_(max=math.log(100))  # the last step may have gone beyond
        save_weights(state, args.save, about)
        print(f"saved {args.save}")
    for checkpoint in checkpoints.values():  # last: until here a run that ends too early loses nothing
        checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
