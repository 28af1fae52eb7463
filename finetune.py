"""Fine-tuning: train the image encoder too, with a linear layer (ml) or towards its captions (cs), of CLIP or of ImageNet.

    python finetune.py --model toy-RN --method cs --lr 5e-4 --epochs 8    # the toy world: about .74 before, .86 after 18 s
    python finetune.py --data fruits360 --model ViT-B/32 --method cs --save best.safetensors
    python finetune.py --load best.safetensors --predict a.jpg b.jpg
    torchrun --nproc-per-node 2 finetune.py ...           # on two GPUs: --batch is of both together, so rates stay as they are

An interrupted run goes on where it was when the same command is started again. Copy this file and common.py to use it
elsewhere.

    x    pixels (B, 3, S, S)     f    features (B, D)     z    unit-length class embeddings of the captions (C, D)
"""

import argparse
import math
import os
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path

from common import (
    about,
    add_flags,
    at_least,
    calibrate,
    check_head,
    check_saved,
    counted,
    dealt,
    digest,
    ending,
    evaluate,
    fail,
    file_sha256,
    first_rank_goes_on,
    fit,
    from_first_rank,
    half_epochs,
    hold_out,
    load,
    lock,
    measure_calibration,
    paired_difference,
    parallel,
    progress,
    read_checkpoint,
    read_weights,
    report,
    save_weights,
    snapshot,
    some,
    spelled,
    use_saved,
)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "data model weights act prompts type classnames label-from groups fit seed device precision alpha reject out")
    parser.add_argument("--method", choices=("ml", "cs"), default="ml", help="linear layer, or captions (%(default)s)")
    parser.add_argument("--head", help="ml starts from: text, random, or a FILE of linear_probe.py --save (text for CLIP, else random)")
    parser.add_argument("--freeze", action="store_true", help="train the head alone, of an encoder as it is")
    parser.add_argument("--epochs", type=at_least(1), default=5, help="(%(default)s)")
    parser.add_argument("--batch", type=at_least(1), default=32, help="images a step, of all processes together (%(default)s)")
    # held-out accuracy from a probe's head at 1e-5 and 1e-4: Simpsons .823 .903 (mobilenet_v2), .790 .823 (squeezenet1_1), 100 Sports
    # .647 .640 (squeezenet1_1; .710 before); 1e-5 is also what is published for CLIP, and on 95 fruits 1e-4 lost what the encoder knew
    parser.add_argument("--lr", type=float, default=1e-5, help="learning rate of the encoder, at its peak (%(default)s)")
    parser.add_argument("--head-lr", type=float, default=1e-3, help="of the head, or of the temperature of cs (%(default)s)")
    parser.add_argument("--decay", type=float, default=0.1, help="weight decay of matrices and filters (%(default)s)")
    parser.add_argument("--train-bn", action="store_true", help="batch norm learns the statistics of the new images")
    parser.add_argument("--no-augment", action="store_true", help="the same images in each epoch")
    parser.add_argument("--seeds", type=at_least(1), default=1, metavar="N", help="repeat with N seeds, from --seed on (%(default)s)")
    save = "keep the weights that are best on validation, of the first seed (not kept)"
    parser.add_argument("--save", type=ending(".safetensors"), metavar="FILE.safetensors", help=save)
    parser.add_argument("--restart", action="store_true", help="begin anew where an interrupted run has left a checkpoint")
    parser.add_argument("--balance", action="store_true", help="in the loss, a class of few images has as much to say as any (no)")
    add_flags(parser, "load predict csv bom export")
    args = parser.parse_args()
    check_saved(parser, args)
    if args.method == "cs" and (args.head or args.freeze):
        parser.error("--head and --freeze are for ml: cs has no head but the captions and their temperature")
    if args.freeze and args.train_bn:
        parser.error("--freeze and --train-bn exclude each other")
    if not (0 <= args.lr < 1 and 0 <= args.head_lr < 1 and 0 <= args.decay < 10):
        parser.error("--lr and --head-lr must lie in 0 to 1, --decay in 0 to 10")
    return args


if __name__ == "__main__":
    arguments()  # here already, because what follows takes seconds to import, and --help and a slip of the pen need none of it

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# ---- augmentation: one warp for flip, rotation, perspective and upsampling, then blur --------------------------------

TURN = 20  # degrees to either side, at most
BEND = 0.5  # how far perspective moves a corner inwards, at most, in half widths; of every second image
SIGMA = 2 / 224  # of the blur, at most, in widths of the model's input; of every second image
ALPHAS = [i / 10 for i in range(11)]  # of WiSE-FT
SAMPLE = 1024  # training images that tell the mean and the spread of an encoder's features


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


_DROPS = ("StochasticDepth", "DropPath")  # torchvision's and timm's dropout of whole branches, by name: importing them takes seconds


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
            elif isinstance(module, nn.Dropout) or type(module).__name__ in _DROPS:
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


# ---- what main() is cut into ------------------------------------------------------------------------------------------


def read_start(args):
    """(what it says of itself, tensors) of the file of --head, or ({}, {})."""
    if args.head in (None, "text", "random"):
        return {}, {}
    if not os.path.isfile(args.head):
        fail(f"{args.head}: no such file; --head takes text, random or what linear_probe.py saved")
    told, tensors = read_weights(args.head)
    if "classes" not in told or "method" in told:
        fail(f"{args.head}: not written by --save of linear_probe.py")
    check_head(args.head, told, tensors)
    return told, tensors


def check_start(args, data, model, told):
    """Fail where the start that the command line asks for does not fit the model."""
    text = args.method == "cs" or args.head == "text"
    if text and not model.has_text:
        fail(f"--method cs and --head text: {model.name} has no text side; it takes --method ml and --head random or a FILE")
    if args.prompts and not text:
        fail("--prompts: only --method cs and --head text start from captions")
    if args.save and (taken := {"head.weight", "head.bias", "head.logit_scale"} & {*model.state_dict()}):
        fail(f"--save: {model.name} has a {taken.pop()} of its own, where the head's would go; call that module something else")
    if data.chosen_with:
        print("note: images that validate here may have chosen the prompts too: on them epoch 0 and alpha 0 look too good")


def first_head(args, data, model, images, told, tensors):
    """Function from a seed to the head that training starts from."""
    if args.method == "cs" or args.head == "text":
        z = model.classifier(data.words, data.templates, data.type)
        if args.method == "cs":
            return lambda seed: Cosine(z, model.log_scale)
        return lambda seed: Linear(model.logit_scale * z, torch.zeros(len(z)))

    train = images["train"]
    sample = np.linspace(0, len(train) - 1, min(len(train), SAMPLE)).round().astype(int)
    shift, scale = (t.cpu() for t in model.centre_and_spread(model.features(train.take(sample))[0]))
    if args.head == "random":

        def random(seed):
            torch.manual_seed(seed)
            weight = nn.Linear(model.width, len(data.classes)).weight.detach() / scale
            return Linear(weight, -weight @ shift, shift, scale)

        return random

    # a head must not have seen what validates or tests here
    here = about(data, model, images, args.seed)
    same = {"weights": "sha256", "activation": "act", "classes": "classes", "split of the images (--seed, files)": "split", "--fit": "view"}
    if other := [what for what, key in same.items() if told.get(key, here[key]) != here[key]]:
        fail(f"--head {args.head}: made with other {', '.join(other)}; make it anew with linear_probe.py --save")
    check_head(args.head, told, tensors, model.width)
    # without a val split the probe's last fit has seen the images that validate here; it has kept another one that has not
    weight, bias = (tensors.get(f"held_out.{part}", tensors[f"head.{part}"]) for part in ("weight", "bias"))
    return lambda seed: Linear(weight, bias, shift, scale)


def all_checkpoints(args, data, model, images, told):
    """{seed: (file, what all numbers depend on)}; with --restart deletes them, else checks each, before hours go into the first."""
    names = ("model", "method", "freeze", "epochs", "batch", "lr", "head_lr", "decay", "train_bn", "no_augment", "act")
    depends = {f"--{name.replace('_', '-')}": getattr(args, name) for name in names}
    depends |= {"--model": model.name, "--prompts": data.templates, "--type": data.type}
    depends |= {"--head": file_sha256(args.head) if told else args.head, "weights": model.sha256, "device": model.device.type}
    depends |= ({"--balance": True} if args.balance else {}) | ({"--fit": args.fit} if args.fit else {})
    paths = [images[split].paths for split in ("train", "val")]
    depends["files or words of the classes"] = digest([data.fingerprint, *paths, data.words])
    depends["precision"] = str(model.dtype)
    stem = Path(args.out or f"cache/finetune/{data.name}-{spelled(model.name)}-{digest(depends)}.json")
    found = {}
    for seed in range(args.seed, args.seed + args.seeds):
        found[seed] = stem.with_suffix(f".{seed}.ckpt"), depends | {"seed": seed}
        if args.restart:
            found[seed][0].unlink(missing_ok=True)
        read_checkpoint(*found[seed])
    return found


def preparation(model, augmented=True):
    """What `fit` does with a batch before its step: augmented on the device, as the network takes it."""

    def prepare(batch):
        x, y, matrices, blurred, sigmas = batch
        if x.shape[-1] < model.size < model.view.short:  # the model sees the centre of them
            matrices = matrices * matrices.new_tensor([model.size / model.view.short] * 2 + [1.0])[:, None]
        return [model.normalise(augment(x, matrices, blurred, sigmas, model.size)) if augmented else model.inputs(x), y]

    return prepare


def train_step(net, model, weights=None):
    """The step for `fit`: the loss of a batch and its share named right; weights (C,) of classes."""
    # a CPU trains a small ViT a quarter faster with attention that keeps its matrix, which would take the memory of a large one
    plain = model.device.type == "cpu" and model.size <= 64

    def step(batch):
        x, y = batch
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            logits = net(x)
        return F.cross_entropy(logits, y, weights), (logits.argmax(1) == y).float().mean()

    return step


def loader(train, seed):
    """Function (rows, epoch) -> tensors of a batch for `train_step`: pictures, labels, and what augments them, by seed, epoch and row."""
    augmentation = lru_cache(2)(partial(draw_augmentation, seed, count=len(train)))

    def load_batch(rows, epoch):
        matrices, sigmas = (numbers[rows] for numbers in augmentation(epoch))
        blurred = sigmas.nonzero()[0]
        return train[rows], train.labels[rows], *map(torch.from_numpy, (matrices, blurred, sigmas[blurred]))

    return load_batch


def logits_and_right(net, model, images, state=None):
    """(logits (N, C), bool (N,): which images are named right) of the network as it is, or in another state, in which it stays."""
    if state:
        net.load_state_dict(state, strict=False)
    batch = from_first_rank(lambda: model.batch)

    def pixels(start):
        return model.sent(images[start : start + batch])

    def encode(x):
        bar.update()
        return model.encode_image(x)

    with torch.no_grad(), model.still():
        if net.freeze:  # all that changes is the head, and the cache has the rest
            f, _ = model.features(images)
        else:
            with progress(None, images.name, "batch", -(-len(images) // batch)) as bar:
                f = torch.cat(dealt(encode, pixels, range(0, len(images), batch))).to(model.device)
        logits = net.head(f).cpu()
    return logits, logits.numpy().argmax(1) == images.labels.numpy()


def tune(args, net, model, images, seed, checkpoint, depends):
    """Train with one seed, choose by validation, try what was chosen on test; leaves `net` as it was.

    {"history", "best": snapshot, "held_out": its logits (N, C) of val, "wise": {alpha: validation accuracy}, "alphas": the best of them,
    "tested": {alpha: as logits_and_right}}
    """
    train, val, test = images.values()
    start = snapshot(net)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(parameter_groups(net, args.lr, args.head_lr, args.decay), fused=True)
    weights = 1 / torch.bincount(train.labels) if args.balance else None  # a batch's mean is over the sum of its weights
    of_images = weights[train.labels] if args.balance else None
    legs = half_epochs(loader(train, seed), len(train), args.batch, args.epochs, seed, of_images)
    step = train_step(parallel(net), model, weights.to(model.device) if args.balance else None)
    prepare = preparation(model, not args.no_augment)

    def validate():
        return logits_and_right(net, model, val)[1].mean().item()

    with lock(checkpoint):  # a twin waits, and goes on from where this one is
        history, best = fit(net, optimizer, legs, step, validate, model, checkpoint, depends, prepare)

    # WiSE-FT: validation picks how far to go from the start to the best, of equals the least; no random head is worth staying near
    wise = {0.0: history[0]["val"], 1.0: max(row["val"] for row in history)}
    alphas = [1.0]
    if args.head != "random":
        wise = {
            a: wise[a] if a in wise else logits_and_right(net, model, val, interpolate(start, best, a))[1].mean().item() for a in ALPHAS
        }
        alphas = [a for a in wise if wise[a] > max(wise.values()) - 1e-9]
    tested = {a: logits_and_right(net, model, test, interpolate(start, best, a)) for a in sorted({0.0, alphas[0], 1.0})}
    held_out = logits_and_right(net, model, val, best)[0]
    net.load_state_dict(start, strict=False)
    return {"seed": seed, "history": history, "best": best, "held_out": held_out, "wise": wise, "alphas": alphas, "tested": tested}


def summarise(args, runs, test, source):
    """Metrics of the runs, those of one seed being the first one's; prints what `report` does not."""
    history, wise, alphas, tested = (runs[0][key] for key in ("history", "wise", "alphas", "tested"))
    after, before, chosen = (tested[a][1] for a in (1.0, 0.0, alphas[0]))
    top = max(history, key=lambda row: row["val"])  # of equals the first
    gain = paired_difference(after, before, test.labels, test.clusters)
    values = [run["tested"][1.0][1].mean().item() for run in runs]
    spread = np.std(values, ddof=1).item() if len(runs) > 1 else None
    metrics = {
        "val": top["val"],
        "best_epoch": top["epoch"],
        "before": before.mean().item(),
        "gain": gain,
        "wise": wise if args.head != "random" else None,
        "wise_alpha": alphas[0],
        "test_wise": {"0": before.mean().item(), "chosen": chosen.mean().item(), "1": after.mean().item()},
        "seconds_per_step": np.mean([run["history"][-1]["busy"] / run["history"][-1]["step"] for run in runs]).item(),
        "seeds": {"mean": np.mean(values).item(), "std": spread, "values": values},
    }
    print(f"validation      {top['val']:.3f}   on {source}, best at epoch {top['epoch']:g}", end="; ")
    print(f"before {history[0]['val']:.3f}, last {history[-1]['val']:.3f}")
    if not top["step"]:
        print("note: no epoch was better on validation than the start, which is what is tested and saved")
    if metrics["wise"]:
        as_good = "; as good: " + some([f"{a:g}" for a in alphas[1:]], 9) if alphas[1:] else ""
        print(f"WiSE-FT         {chosen.mean():.3f}   on test, alpha {alphas[0]:g} of validation {wise[alphas[0]]:.3f}{as_good}")
    print(f"before          {before.mean():.3f}   on test; gain {gain['mean']:+.3f}", end=", ")
    print("95 % interval {:+.3f} to {:+.3f}".format(*gain["ci95"]))
    if len(runs) > 1:
        print(f"{len(runs)} seeds         {np.mean(values):.3f} ± {spread:.3f} on test; what follows: seed {args.seed}")
    return metrics


def save_network(args, data, model, images, net, best, used, fitted):
    """Write the network in its state `best`, with all that --load needs to name pictures. `net` holds the encoder of `model`."""
    net.load_state_dict(best, strict=False)
    told = about(data, model, images, args.seed) | {"method": args.method, "labels_used": used, "calibration": fitted}
    told["act"] = model.act or ("quickgelu" if model.has_text else "")
    state = model.state_dict()
    if args.method == "ml":
        told["unit"] = net.head.unit
        state |= zip(("head.weight", "head.bias"), net.head.plain())
    else:
        net.head.logit_scale.detach().clamp_(max=math.log(100))  # the last step may have gone beyond
        if all(p is not net.head.logit_scale for p in (model.net or model.visual).parameters()):
            state["head.logit_scale"] = net.head.logit_scale
    save_weights(args.save, state, told)
    print(f"saved {args.save}")


def main():
    args = arguments()
    if args.load:
        return use_saved(args)
    told, tensors = read_start(args)
    if told and args.model and spelled(args.model).lower() != spelled(told["model"]).lower():
        fail(f"--head {args.head}: of {told['model']}, not of --model {args.model}")
    args.model = args.model or told.get("model")
    batch, args.batch = args.batch, None  # --batch is of a training step; for all else the model knows its own
    data, model = load(args, told.get("features"))
    args.batch = batch
    if args.method == "ml":
        args.head = args.head or ("text" if model.has_text else "random")
    check_start(args, data, model, told)
    images = hold_out(data.images(model.view), args.seed)
    train, val, test = images.values()
    source = f"{len(val):,} " + ("images of the val split" if data.splits.get("val") else "held-out training images")
    origin = "" if args.method == "cs" else f" from {args.head}{', encoder frozen' if args.freeze else ''}"
    print(f"{args.method}{origin}: {counted(args.epochs, 'epoch')} of {-(-len(train) // args.batch)} steps", end=" ")
    print(f"of {args.batch} images, learning rates {args.lr:g} and {args.head_lr:g} (head), decay {args.decay:g}")

    # each seed from the same start
    head = first_head(args, data, model, images, told, tensors)
    checkpoints = all_checkpoints(args, data, model, images, told)
    runs = []
    for seed, (checkpoint, depends) in checkpoints.items():
        net = Classifier(model.visual, head(seed).to(model.device), args.freeze, args.train_bn)
        runs.append(tune(args, net, model, images, seed, checkpoint, depends))
    first_rank_goes_on()

    # what it has come to, on test images
    logits, used = runs[0]["tested"][1.0][0], max(len(train) + len(val), data.chosen_with)
    metrics = summarise(args, runs, test, source) | evaluate(logits, test.labels, data.classes, test.clusters)
    fitted = calibrate(runs[0]["held_out"], val.labels, args.alpha, source.split(maxsplit=1)[1].removeprefix("images of the "))
    metrics["calibration"] = measure_calibration(fitted, logits, test.labels, data.classes, val.clusters, args.reject)
    history = [{"seed": run["seed"], **row} for run in runs for row in run["history"]]
    history += [{"seed": run["seed"], "alpha": a, "val": v} for run in runs if metrics["wise"] for a, v in run["wise"].items()]
    start, weighed = args.head if args.head in ("text", "random") else "probe", args.balance * ", balanced"
    method = f"linear layer, {start} start" if args.freeze else f"fine-tuned, {args.method}, rate {args.lr:g}"
    report(args, data, model, images, metrics, method + weighed, logits, used, history=history)
    if args.save:
        first = Classifier(model.visual, head(args.seed).to(model.device), args.freeze, args.train_bn)
        save_network(args, data, model, images, first, runs[0]["best"], used, fitted)
    for checkpoint, _ in checkpoints.values():  # last: until here a run that ends too early loses nothing
        checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
