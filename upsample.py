"""Super-resolution: train a generator that enlarges pictures 4 times, enlarge a data set with it, measure what it restores.

    python upsample.py train --data toy --blocks 4 --width 32 --epochs 8 --adversarial 4 --save sr.safetensors     # 55 s
    python upsample.py apply --data toy --weights sr.safetensors     # data/toy-srgan, a data set like any other: 15 s
    python upsample.py eval --data toy --weights sr.safetensors      # bicubic 23.4 dB, pixel-only 27.1, SRGAN 26.9: 5 s

SRGAN (Ledig et al. 2017): first on pixels alone, then against a discriminator; both generators are kept. The bicubic rival needs
no files: every script enlarges small pictures on the device. Copy this file and common.py to use it elsewhere.

    high    pictures (B, 3, 4h, 4w)     low    the same pictures reduced, (B, 3, h, w)
"""

import argparse
import math
import os
import shutil
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from itertools import pairwise
from pathlib import Path

from common import (
    Model,
    add_flags,
    at_least,
    atomic,
    clock,
    code_version,
    counted,
    digest,
    ending,
    fail,
    file_sha256,
    first_rank_goes_on,
    fit,
    half_epochs,
    hold_out,
    image_sizes,
    input_size,
    load_data,
    load_model,
    lock,
    native_size,
    natural,
    pick_device,
    progress,
    read_ahead,
    read_checkpoint,
    read_json,
    read_weights,
    report,
    save_weights,
    some,
    upsample,
    why,
    write_json,
)

SCALE = 4
ADVERSARIAL = 5e-3  # weight of the adversarial loss beside that of content, as in ESRGAN (Wang et al. 2018)
VALIDATE = 256  # validation pictures, at most
SIDE = 96  # of the squares to train on, and of pictures of several sizes before they are reduced, at most
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # what PyTorch-GAN normalises with
CACHED = 2**19  # channels times pixels of low resolution at a time on a CPU: of 100 px and 64 channels one picture, 1.2 times as fast as 8
HELD = 2**25  # and on a GPU: 52 such pictures, of which a layer makes 1 GB


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    training = tasks.add_parser("train", help="train a generator on crops of the training images")
    applying = tasks.add_parser("apply", help="write an enlarged copy of a data set")
    evaluating = tasks.add_parser("eval", help="reduce the test images, restore them and compare")
    add_flags(training, "data label-from groups seed device precision out")
    save = ending(".safetensors")
    training.add_argument("--save", required=True, type=save, metavar="FILE.safetensors", help="keep both generators here")
    training.add_argument("--content", choices=("pixel", "vgg"), default="pixel", help="what the adversarial stage keeps (%(default)s)")
    training.add_argument("--blocks", type=at_least(1), default=16, help="residual blocks (%(default)s)")
    training.add_argument("--width", type=at_least(1), default=64, help="channels (%(default)s)")
    training.add_argument("--batch", type=at_least(1), default=16, help=f"squares of {SIDE} px a step (%(default)s)")
    training.add_argument("--epochs", type=at_least(1), default=20, help="on pixels alone (%(default)s)")
    training.add_argument(
        "--adversarial", type=at_least(0), default=10, metavar="EPOCHS", help="then against a discriminator (%(default)s)"
    )
    training.add_argument("--lr", type=float, default=1e-3, help="learning rate at its peak, a tenth when adversarial (%(default)s)")
    training.add_argument("--restart", action="store_true", help="begin anew where an interrupted run has left checkpoints")
    add_flags(applying, "data label-from device precision")
    add_flags(evaluating, "data label-from groups seed device precision out")
    for task in (applying, evaluating):
        task.add_argument("--weights", required=True, metavar="FILE", help="what train --save wrote, or a file of --dialect")
        task.add_argument("--dialect", choices=("pytorch-gan",), help="FILE holds a generator of PyTorch-GAN (our own kind)")
        task.add_argument("--batch", type=at_least(1), help="images at a time (8, on a GPU 32)")
    applying.add_argument("--generator", choices=("srgan", "pixel"), default="srgan", help="adversarial, or pixel-only (%(default)s)")
    sizing = applying.add_mutually_exclusive_group()
    sizing.add_argument("--model", help="bring the pictures to the input size of this model (toy-ViT on toy, else ViT-B/32)")
    sizing.add_argument("--size", type=at_least(8), metavar="N", help="or bring their short side to N pixels")
    applying.add_argument("--restart", action="store_true", help="make anew what this script made of other pictures or weights")
    applying.add_argument("--to", metavar="FOLDER", help="write them here (data/NAME-srgan)")
    evaluating.add_argument("--grid", type=ending(".png"), metavar="FILE", help="draw some of the pictures as PNG (none)")
    args = parser.parse_args()
    if args.task == "train" and not 0 < args.lr < 1:
        training.error("--lr must lie in 0 to 1")
    if args.task == "train" and args.content == "vgg" and not args.adversarial:
        training.error("--content vgg is for the adversarial stage: --adversarial 0 leaves it out")
    return args


if __name__ == "__main__":
    arguments()  # here already, because what follows takes seconds to import, and --help and a slip of the pen need none of it

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# ---- networks ---------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width, conv, eps):
        super().__init__()
        norms = [nn.BatchNorm2d(width, eps) for _ in range(2)]
        self.conv_block = nn.Sequential(conv(width, width, 3), norms[0], nn.PReLU(), conv(width, width, 3), norms[1])

    def forward(self, x):
        return x + self.conv_block(x)


class Generator(nn.Module):
    """SRGAN's generator, keys as in PyTorch-GAN: normalised pictures (B, 3, h, w) -> (B, 3, 4h, 4w).

    Ours adds its output to the bicubic enlargement and starts from exactly that; it pads by repeating the border, because
    what it learns on small crops, where zeros are never far, must hold inside of large pictures. The dialect "pytorch-gan"
    pads with zeros, ends in tanh, and its batch norms have an eps of 0.8: so such files were trained.
    """

    def __init__(self, blocks=16, width=64, dialect=None):
        super().__init__()
        self.tanh = dialect == "pytorch-gan"
        eps = 0.8 if self.tanh else 1e-5

        def conv(channels, out, size):
            return nn.Conv2d(channels, out, size, padding=size // 2, padding_mode="zeros" if self.tanh else "replicate")

        self.conv1 = nn.Sequential(conv(3, width, 9), nn.PReLU())
        self.res_blocks = nn.Sequential(*[Block(width, conv, eps) for _ in range(blocks)])
        self.conv2 = nn.Sequential(conv(width, width, 3), nn.BatchNorm2d(width, eps))
        stages = [(conv(width, 4 * width, 3), nn.BatchNorm2d(4 * width), nn.PixelShuffle(2), nn.PReLU()) for _ in range(2)]
        self.upsampling = nn.Sequential(*stages[0], *stages[1])
        self.conv3 = nn.Sequential(nn.Conv2d(width, 3, 9, padding=4))
        if not self.tanh:
            nn.init.zeros_(self.conv3[0].weight)
            nn.init.zeros_(self.conv3[0].bias)

    def forward(self, x):
        first = self.conv1(x.to(self.conv1[0].weight.dtype))
        y = first + self.conv2(self.res_blocks(first))
        y = self.conv3(self.upsampling(y))[:, :3]  # folded, it has a fourth
        return y.tanh() if self.tanh else y + F.interpolate(x, scale_factor=SCALE, mode="bicubic", antialias=True)


class Discriminator(nn.Module):
    """SRGAN's, on patches: pictures (B, 3, H, W) of values -1..1 -> one logit for each patch, high where it looks like a photo."""

    def __init__(self, width=64):
        super().__init__()
        layers, before = [], 3
        for i, factor in enumerate((1, 1, 2, 2, 4, 4, 8, 8)):
            layers.append(nn.Conv2d(before, factor * width, 3, stride=1 + i % 2, padding=1))
            layers += [nn.BatchNorm2d(factor * width)] if i else []
            layers.append(nn.LeakyReLU(0.2))
            before = factor * width
        self.model = nn.Sequential(*layers, nn.Conv2d(before, 1, 3, padding=1))

    def forward(self, x):
        return self.model(x)


def build(state, dialect=None):
    """{"pixel": Generator, "srgan": Generator}, as many as a state dict holds. Raises ValueError for another shape."""
    if "conv1.0.weight" in state and not dialect:
        raise ValueError("a single generator, not a file of this script; if it is one of PyTorch-GAN, say --dialect pytorch-gan")
    nets = {}
    for name in ("srgan",) if dialect else ("pixel", "srgan"):
        part = state if dialect else {k.removeprefix(f"{name}."): t for k, t in state.items() if k.startswith(f"{name}.")}
        if part:
            try:
                blocks = len({key.split(".")[1] for key in part if key.startswith("res_blocks.")})
                nets[name] = Generator(blocks, len(part["conv1.0.weight"]), dialect)
                nets[name].load_state_dict(part)
                if not all(tensor.isfinite().all() for tensor in part.values()):
                    raise RuntimeError("a weight is not finite")
            except KeyError as error:
                raise ValueError(f"not an SRGAN generator: lacks {error}") from error
            except (RuntimeError, TypeError, AttributeError) as error:
                raise ValueError(f"not an SRGAN generator: {error}") from error
    if not nets:
        raise ValueError("not a file of this script: holds neither pixel.* nor srgan.*")
    return nets


def fold(net, dtype=torch.float32):
    """The same function as a trained Generator, with less to compute and to move through memory; changes `net`.

    All is kept in `dtype`: autocast would convert the weights for each picture, and have borders padded in 32 bits, for the
    same result (1.13 times the images/s). Batch norms go into the convolutions before them, and PReLUs, each of one slope,
    work in place. The last convolution is done before the pixels are shuffled, on a quarter of the positions with four times
    the channels: three output channels leave a processor's vectors mostly empty (1.4 times the images/s on a CPU). So would
    twelve, and it has sixteen, of which the last make a fourth channel of zeros.
    """
    net.eval().requires_grad_(False)
    for module in [m for m in net.modules() if isinstance(m, nn.Sequential)]:
        for i, layer in enumerate(module):
            if isinstance(layer, nn.BatchNorm2d):
                module[i - 1], module[i] = fuse_conv_bn_eval(module[i - 1], layer), nn.Identity()
            elif isinstance(layer, nn.PReLU):
                module[i] = nn.LeakyReLU(layer.weight.item(), inplace=True)
    last = net.conv3[0]
    phases = [F.pixel_unshuffle(F.pad(last.weight, (b, 1 - b, a, 1 - a)), 2) for a in (0, 1) for b in (0, 1)]
    net.conv3 = nn.Sequential(nn.Conv2d(4 * last.in_channels, 16, 5, padding=2), nn.PixelShuffle(2)).requires_grad_(False)
    net.conv3[0].weight.copy_(F.pad(torch.stack(phases, 1).flatten(0, 1), (0, 0, 0, 0, 0, 0, 0, 4)))
    net.conv3[0].bias.copy_(F.pad(last.bias.repeat_interleave(4), (0, 4)))
    net.upsampling[6] = nn.Identity()
    return net.to(dtype)


@torch.inference_mode()
def restore(model, low):
    """uint8 (B, 3, h, w) anywhere -> uint8 (B, 3, 4h, 4w) on the device. No picture is stretched by its own minimum or maximum.

    A CPU takes as few at a time as leave what a layer makes of them in its cache, a GPU as many as fit into its memory.
    """
    rows = max(1, (CACHED if model.device.type == "cpu" else HELD) // (low[0, 0].numel() * model.width))
    context = nullcontext if next(model.visual.parameters()).dtype == model.dtype else model.autocast  # the latter while it is trained
    restored = []
    for part in low.split(rows):
        with context():
            y = model.visual(model.normalise(part.to(model.device)))
        restored.append((y.float() * model.scale + model.shift).mul_(255).clamp_(0, 255).round_().to(torch.uint8))
    return torch.cat(restored)


def adversarial_losses(critic, real, fake):
    """(the discriminator's, the generator's) loss on pictures of values 0..1: each teaches its own network only."""
    judged = F.softplus(-critic(2 * real - 1).float()).mean() + F.softplus(critic(2 * fake.detach() - 1).float()).mean()
    critic.requires_grad_(False)
    fooled = F.softplus(-critic(2 * fake - 1).float()).mean()
    critic.requires_grad_(True)
    return judged, fooled


# ---- measures -----------------------------------------------------------------------------------------------------------


def psnr(x, y):
    """Peak signal-to-noise ratio (B,) in dB, of each picture (B, 3, H, W) of values 0..255; equal ones count 100."""
    mse = (x.float() - y.float()).square().mean((1, 2, 3))
    return (20 * math.log10(255) - 10 * mse.log10()).clamp(max=100)


def ssim(x, y):
    """Structural similarity (B,) of each picture (B, 3, H, W) of values 0..255, at least 11 px wide and high.

    Wang et al. 2004: Gaussian windows of 11 px and sigma 1.5 that lie wholly inside, the mean over places and channels.
    """
    x, y = x.cpu().double(), y.cpu().double()
    window = (-0.5 * (torch.arange(-5, 6, dtype=torch.float64) / 1.5).square()).softmax(0)

    def bands(side):  # (side - 10, side): each row averages one window, so that two products blur a picture
        return torch.stack([F.pad(window, (i, side - 11 - i)) for i in range(side - 10)])

    down, across = bands(x.shape[2]), bands(x.shape[3]).T

    def mean(t):
        return down @ t @ across

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return values.mean((1, 2, 3))


# ---- pictures -----------------------------------------------------------------------------------------------------------


def short_side(sizes):
    """The short side that nine of ten pictures of these (width, height) have, at most SIDE: an enlarged one would teach blur."""
    sides = [min(size) for size in sizes if size]
    return min(SIDE, int(np.quantile(sides, 0.1))) if sides else SIDE


def crop(picture, size, seed):
    """A random square (size, size, 3) of a picture (H, W, 3), in one of its eight orientations."""
    rng = np.random.default_rng(seed)
    top, left = (rng.integers(side - size + 1) for side in picture.shape[:2])
    picture = np.rot90(picture[top : top + size, left : left + size], rng.integers(4))
    return picture[:, :: rng.choice([-1, 1])]


def fitted(height, width, size):
    """(height, width) of a picture whose short side is brought to `size`."""
    return tuple(round(side * size / min(height, width)) for side in (height, width))


def draw_grid(file, rows, title):
    """PNG with the lists of pictures (H, W, 3) in `rows`, {name: list}, under each other, however large they are."""
    from matplotlib.figure import Figure  # here, because it takes half a second to import

    count = len(next(iter(rows.values())))
    width = max(5.0, 1 + 1.6 * count)
    fig = Figure(figsize=(width, 1.65 * len(rows) + 0.4), layout="constrained")
    axes = fig.subplots(len(rows), count, squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items()):
        for ax, picture in zip(line, pictures):
            ax.imshow(picture, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        line[0].set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center")
    fig.suptitle(textwrap.fill(title, int(10 * width)), fontsize=11, parse_math=False)
    fig.savefig(file, format="png", dpi=100)


# =======================================================================================================================
# From here on the three commands, which are main()'s and alone touch common
# =======================================================================================================================


def as_model(net, name, size, device, dtype, sha256=""):
    """A Generator as a Model, which knows how to normalise: values 0..1 for ours."""
    mean, std = IMAGENET if net.tanh else ((0.0,) * 3, (1.0,) * 3)
    net.to(device, memory_format=torch.channels_last)
    width = net.conv1[0].out_channels
    return Model(f"{name}-{len(net.res_blocks)}x{width}", net, None, size, mean, std, width, sha256, device, dtype, kind=f"x{SCALE}")


# ---- train --------------------------------------------------------------------------------------------------------------


def own_size(data, splits):
    """{split: Images} of the size that the pictures of the first split have, broken ones left aside."""
    sizes, side = dict(zip((row[0] for row in data.files(splits[0])), image_sizes(data, data.files(splits[0])))), None
    while side != (side := native_size(sizes.values()) or short_side(sizes.values())):
        images = data.images(side, splits)
        for path, _ in images[splits[0]].skipped:
            sizes.pop(path, None)
    return images


def training_images(args):
    """(Data, {"train": Images, "val": Images}, side of the squares to train on, side of whole pictures to validate with)."""
    data = load_data(args.data, seed=args.seed, union=True, groups=args.groups, label_from=args.label_from)
    splits = ["train", *(["val"] if data.splits.get("val") else [])]
    images = hold_out(own_size(data, splits), args.seed)
    side = images["train"].pixels.shape[1]
    size, whole = min(SIDE, side) // SCALE * SCALE, images["val"].pixels.shape[1] // SCALE * SCALE
    if min(size, whole) < 2 * SCALE:
        fail(f"--data {args.data}: images of {side} px are too small to be reduced, {2 * SCALE} are needed")
    if args.adversarial and size < 32:  # the discriminator reduces 16 times
        fail(f"--data {args.data}: images of {size} px are too small for a discriminator, 32 are needed; give --adversarial 0")
    return data, images, size, whole


def reduced(high):
    """(high, low): pictures (B, 3, 4h, 4w), and the same reduced."""
    return high, upsample(high, high.shape[2] // SCALE)


def pixel_step(generator, model):
    """The step for `fit` on pixels alone: (mean absolute difference, PSNR)."""

    def step(batch):
        high, low = batch
        fake = generator(model.normalise(low)).float()
        return F.l1_loss(fake, high / 255), psnr(255 * fake.detach(), high).mean()

    return step


def adversarial_step(generator, critic, model, vgg=None):
    """The step against the discriminator `critic`: content, of pixels or of VGG's features, and both sides' adversarial loss."""

    def step(batch):
        high, low = batch
        real, fake = high / 255, generator(model.normalise(low)).float()
        if vgg:  # features of its last convolution after activation, scaled as in the paper
            there, here = (vgg.visual.features[:36](vgg.normalise(255 * p)).float() for p in (real, fake))
            content = F.mse_loss(here, there) / 12.75**2
        else:
            content = F.l1_loss(fake, real)
        judged, fooled = adversarial_losses(critic, real, fake)
        return content + ADVERSARIAL * fooled + judged, psnr(255 * fake.detach(), high).mean()

    return step


def plan(args, generator, model, depends):
    """{stage: (step, what it trains, epochs, learning rate, checkpoint, what its numbers depend on)}; checks the checkpoints."""
    stages = {"pixel": (pixel_step(generator, model), generator, args.epochs, args.lr, depends)}
    if args.adversarial:
        critic = Discriminator(args.width).to(model.device, memory_format=torch.channels_last)
        both = nn.ModuleDict({"generator": generator, "critic": critic})
        vgg = load_model("vgg19", args.device, precision=args.precision) if args.content == "vgg" else None
        step = adversarial_step(generator, critic, model, vgg)
        stages["srgan"] = (step, both, args.adversarial, args.lr / 10, depends | {"--adversarial": args.adversarial})
    for name, (*how, about) in stages.items():  # both of them before hours go into the first
        checkpoint = Path(args.save).with_suffix(f".{name}.ckpt")
        if args.restart:
            checkpoint.unlink(missing_ok=True)
        read_checkpoint(checkpoint, about)
        stages[name] = (*how, checkpoint, about)
    return stages


def train(args, device, dtype):
    data, images, size, whole = training_images(args)
    learn, val = images["train"], images["val"]
    torch.manual_seed(args.seed)
    generator = Generator(args.blocks, args.width)
    model = as_model(generator, "srgan", size, device, dtype)
    names = ("content", "blocks", "width", "batch", "epochs", "lr", "seed")
    depends = {f"--{name}": getattr(args, name) for name in names} | {"device": device.type, "precision": str(dtype)}
    depends["files"] = digest([data.fingerprint, learn.paths, val.paths])
    stages = plan(args, generator, model, depends)

    def load(rows, epoch):
        squares = [crop(learn[[row]][0].permute(1, 2, 0).numpy(), size, [args.seed, epoch, row]) for row in rows]
        return reduced(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2))

    sample = val.take(np.linspace(0, len(val) - 1, min(len(val), VALIDATE)).round().astype(int))

    def validate():
        batches = (reduced(high[:, :, :whole, :whole]) for high in sample.batches(args.batch))
        return torch.cat([psnr(restore(model, low), high.to(device)) for high, low in batches]).mean().item()

    million = sum(p.numel() for p in generator.parameters()) / 1e6
    print(f"{model.name}: {million:.2f} M parameters, {device} {str(dtype).removeprefix('torch.')}", end="; ")
    steps = -(-len(learn) // args.batch)
    print(f"{args.epochs} + {args.adversarial} epochs of {steps} steps of {args.batch} crops of {size} px")
    kept, history, metrics = {}, [], {"steps": {}, "val_psnr": {}, "seconds_per_step": {}}
    for name, (step, net, epochs, lr, checkpoint, about) in stages.items():
        torch.manual_seed(args.seed)
        optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0, fused=True)
        legs = half_epochs(load, len(learn), args.batch, epochs, args.seed)
        with lock(checkpoint):
            rows, best = fit(net, optimizer, legs, step, validate, model, checkpoint, about)
        chosen = rows[-1]  # adversarial training gives PSNR away on purpose: its last step counts
        if name == "pixel":  # the best on validation
            chosen = max(rows, key=lambda row: row["val"])
            generator.load_state_dict(best, strict=False)
        kept |= {f"{name}.{key}": tensor.clone() for key, tensor in generator.state_dict().items()}
        history += [{"stage": name, **row} for row in rows]
        metrics["steps"][name], metrics["seconds_per_step"][name] = chosen["step"], rows[-1]["busy"] / rows[-1]["step"]
        metrics["val_psnr"] |= {"bicubic": history[0]["val"], name: chosen["val"]}
    print("validation PSNR " + ", ".join(f"{name} {value:.2f} dB" for name, value in metrics["val_psnr"].items()))
    if not metrics["steps"]["pixel"]:
        print("note: no epoch on pixels was better than bicubic, from where all else then starts; try more epochs")
    print("steps           " + ", ".join(f"{name} {value:,}" for name, value in metrics["steps"].items()))

    told = {"steps": metrics["steps"], "data": data.name, "content": args.content, "seed": args.seed}
    told |= {"files": data.fingerprint, "test": digest([row[0] for row in data.files("test")])}
    save_weights(args.save, kept, told)
    print(f"saved {args.save}")
    model.sha256 = file_sha256(args.save)
    report(args, data, model, images, metrics, history=history)
    for *_, checkpoint, _ in stages.values():  # last: until here a run that ends too early loses nothing
        checkpoint.unlink(missing_ok=True)


# ---- eval ---------------------------------------------------------------------------------------------------------------


def evaluate(args, models, told):
    data = load_data(args.data, seed=args.seed, union=True, groups=args.groups, label_from=args.label_from)
    test = data.files("test")
    if told.get("files") == data.fingerprint and told["test"] != digest([row[0] for row in test]):
        fail(f"--seed {args.seed}: holds out other test images than training did, which has seen some of them; say --seed {told['seed']}")
    images = own_size(data, ["test"])["test"]
    size = images.pixels.shape[1] // SCALE * SCALE
    if size < 12:
        fail(f"--data {args.data}: images of {images.pixels.shape[1]} px are too small to compare, 12 are needed")
    print(f"each of {size} px, reduced to {size // SCALE} px and restored")

    # every picture by every method, and five of them kept to look at
    scores = {measure: {name: [] for name in ("bicubic", *models)} for measure in ("psnr", "ssim")}
    shown = np.random.default_rng(args.seed).permutation(len(images))[:5]
    last = "srgan" if "srgan" in models else "pixel"
    columns = {title: [] for title in ("low", "bicubic", last.replace("srgan", "SRGAN"), "original")}
    batches = progress(images.batches(args.batch), "restoring", "batch", -(-len(images) // args.batch))
    for start, high in zip(range(0, len(images), args.batch), batches):
        high, low = reduced(high[:, :, :size, :size])
        restored = {"bicubic": upsample(low, size)} | {name: restore(model, low).cpu() for name, model in models.items()}
        for name, pictures in restored.items():
            scores["psnr"][name] += psnr(pictures, high).tolist()
            scores["ssim"][name] += ssim(pictures, high).tolist()
        for column, x in zip(columns.values(), (low, restored["bicubic"], restored[last], high)):
            column += [x[i - start].permute(1, 2, 0).numpy() for i in shown if start <= i < start + len(high)]

    metrics = {"steps": told["steps"]} if "steps" in told else {}
    for measure, lists in scores.items():
        values = {name: np.array(numbers) for name, numbers in lists.items()}
        values |= {f"difference{'_pixel' * (name == 'pixel')}": values[name] - values["bicubic"] for name in models}
        spread = {name: numbers.std(ddof=1) if len(numbers) > 1 else 0.0 for name, numbers in values.items()}
        metrics[measure] = {name: {"mean": numbers.mean(), "sd": spread[name]} for name, numbers in values.items()}
        for name, m in metrics[measure].items():
            label = {"difference": "srgan - bicubic", "difference_pixel": "pixel - bicubic"}.get(name, name)
            print(f"{measure}  {label:17}{m['mean']:7.3f} ± {m['sd']:.3f}{' dB' if measure == 'psnr' else ''}")
    print("± is the standard deviation over pictures; differences are taken picture by picture")
    print("note: this is another scale than that of use, where these pictures themselves are enlarged; what decides is accuracy")
    if args.grid:
        with atomic(args.grid) as temporary:
            measured = {name: f"{m['mean']:.1f} dB" for name, m in metrics["psnr"].items()}
            measured |= {"low": f"{size // SCALE} px", "original": f"{size} px"}
            rows = {f"{name}\n{measured[name.lower()]}": pictures for name, pictures in columns.items()}
            draw_grid(temporary, rows, f"{data.name}: test pictures, PSNR as mean of all {len(images.rows):,}")
        print(f"drew {args.grid}")
    report(args, data, models[last], {"test": images}, metrics)


# ---- apply --------------------------------------------------------------------------------------------------------------


def begun(args, data, model, to):
    """(folder to work in, what it says of itself, whether it is the whole one already): a data set that is made is `to`; until
    it is whole it lies beside under a hidden name, so that no script takes half of the pictures for all."""
    part = to.with_name(f".{to.name}-unfinished")
    about = {"data": data.name, "files": data.fingerprint, "weights": model.sha256, "--generator": args.generator, "--size": args.size}
    about |= {"--dialect": args.dialect, "device": model.device.type, "precision": str(model.dtype).removeprefix("torch.")}
    folder = to if os.path.lexists(to) else part
    mark = folder / "upsample.json"
    found = read_json(mark) if mark.is_file() else {}
    ours = isinstance(found, dict) and isinstance(found.get("about"), dict) and isinstance(found.get("skipped", []), list)
    found = found if ours else {"about": {}}
    other = [key for key in about if found["about"].get(key) != about[key]]
    if found["about"] and other and args.restart:
        for stale in [f for f in (to, part) if f.is_dir()]:
            names = [f for f in stale.rglob("*") if not f.is_dir() or f.is_symlink()]
            if other := [str(f) for f in names if f.suffix != ".png" and f.name not in ("upsample.json", "classnames.json")]:
                fail(f"{other[0]}: not made by this script, so --restart leaves it alone; take it away, or name another folder by --to")
            shutil.rmtree(stale)
        return part, {"about": about}, False
    if os.path.lexists(folder) and other:
        what = f"made with other {', '.join(other)} (--restart makes it anew)" if found["about"] else "was not made by this script"
        fail(f"{folder}: {what}; delete it, or name another folder by --to")
    return folder, found if found["about"] else {"about": about}, folder == to


def prepare(part, data, told):
    """The folders of all classes, also of those without pictures, and what else belongs to the data set."""
    part.mkdir(parents=True, exist_ok=True)
    write_json(part / "upsample.json", told)
    for stale in part.rglob(".*.png"):  # what a kill while writing has left
        stale.unlink()
    for place in [place for places in data.folders.values() for place in places]:
        (part / place).mkdir(parents=True, exist_ok=True)
    if (names := data.root / "classnames.json").is_file():
        shutil.copy(names, part)
    elif data.kind == "archive":
        write_json(part / "classnames.json", dict(zip(data.classes, data.words)))


def copies(data):
    """{path: that of its copy}: the same with .png; of a CSV, whose paths may lead anywhere, SPLIT/LABEL/NUMBER-NAME.png, in order."""
    rows = sorted(((row, split) for split, files in data.splits.items() for row in files), key=lambda r: (natural(r[0][0]), r[0][0]))
    if data.kind != "csv":
        return {row[0]: Path(row[0]).with_suffix(".png") for row, _ in rows}
    if bad := [c for c in data.classes if "/" in c or c.startswith(".")]:
        fail(f"--data {data.root}: no folder can be called like the label {bad[0]}; name it otherwise")
    rest = "train" if "train" in data.folders else ""  # what test images without a split of their own are held out from
    tops = {split: split if split in data.folders else rest for split in data.splits}
    return {row[0]: Path(tops[split], data.classes[row[3]], f"{i:07}-{Path(row[0]).stem}.png") for i, (row, split) in enumerate(rows)}


def in_batches(data, todo, size):
    """Batches of at most `size` of the files, those of a picture's size together."""
    groups = {}
    for row, shape in zip(todo, image_sizes(data, todo)):
        groups.setdefault(shape, []).append(row)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def enlarge(args, data, model, part, targets, todo):
    """Write the pictures of `todo` to their targets below `part`: ([(name, why not)] of what cannot be decoded, how many were copied)."""

    def decode(row):
        try:
            pixels = np.asarray(data.picture(row[0]))
            return pixels if pixels.size > 3 else ValueError("1 x 1 px hold nothing to enlarge")
        except (ValueError, OSError, MemoryError) as error:
            return error

    def save(row, pixels):
        target = part / targets[row[0]]
        target.parent.mkdir(parents=True, exist_ok=True)  # pictures may lie deeper than their class
        temporary = target.with_name(f".{target.name}")
        Image.fromarray(pixels).save(temporary, "PNG", compress_level=3)  # 4 % larger than by 6, in a third of the time
        os.replace(temporary, target)

    batches, skipped, copied, behind = in_batches(data, todo, args.batch), [], 0, []
    with ThreadPoolExecutor() as pool, progress(None, "upsampling", "img", len(todo)) as bar:
        for batch, pictures in zip(batches, read_ahead(pool, decode, batches)):
            shapes = {}
            for row, picture in zip(batch, pictures):
                if isinstance(picture, ValueError):
                    skipped.append((row[0], why(picture)))
                elif isinstance(picture, Exception):
                    fail(f"{data.root / row[0]}: {why(picture)}; the same command goes on from here")
                else:
                    shapes.setdefault(picture.shape[:2], []).append((row, picture))
            for (height, width), members in shapes.items():
                x = torch.from_numpy(np.stack([picture for _, picture in members])).permute(0, 3, 1, 2)
                if min(height, width) < args.size:
                    x = upsample(restore(model, x), fitted(height, width, args.size))
                else:
                    copied += len(x)
                for future in behind:
                    future.result()
                behind = [pool.submit(save, row, p) for (row, _), p in zip(members, x.permute(0, 2, 3, 1).cpu().numpy())]
                bar.update(len(x))
        for future in behind:
            future.result()
    return skipped, copied


def apply(args, models, told):
    data = load_data(args.data, union=True, label_from=args.label_from)
    if args.generator not in models:
        fail(f"--generator {args.generator}: {args.weights} holds no such generator, only: {', '.join(models)}")
    model = models[args.generator]
    args.size = args.size or input_size(args.model, args.data)
    to = Path(args.to or f"data/{data.name}-srgan")
    if to.name in ("", ".."):
        fail(f"--to {to}: name the folder that is to be made")
    there, here = to.resolve(), data.root.resolve()
    if data.kind != "csv" and (there == here or there in here.parents or here in there.parents):
        fail(f"--to {to}: is the folder of --data, or lies in it, or around it; name another one")
    rows = [row for files in data.splits.values() for row in files]
    targets = copies(data)
    if clash := [f"{a} and {b}" for (a, x), (b, y) in pairwise(sorted(targets.items(), key=lambda t: t[1])) if x == y]:
        fail(f"--data {data.root}: these would get one name: {some(clash, 3)}; rename one of each")

    with lock(to):
        complete(args, data, model, to, rows, targets)


def complete(args, data, model, to, rows, targets):
    """Write what is missing of the copies of `rows` to their targets below `to`."""
    folder, said, whole = begun(args, data, model, to)
    todo = [row for row in rows if not (folder / targets[row[0]]).exists()]
    if whole and len(todo) == len(said.get("skipped", [])):
        with suppress(OSError):
            (folder / "upsample.json").touch()  # for make: it is as new as what it was made from
        return print(f"{to}: complete, nothing to do")
    part = to.with_name(f".{to.name}-unfinished")
    if whole:  # somebody has taken pictures out of it
        os.replace(to, part)
    prepare(part, data, said)
    before = f", {len(rows) - len(todo):,} of them done before" if len(todo) < len(rows) else ""
    print(f"{data.name}: {counted(len(rows), 'image')}{before}; by {model.name} on {model.device}, short side to {args.size} px")
    began = time.time()
    skipped, copied = enlarge(args, data, model, part, targets, todo)
    rate = (len(todo) - len(skipped)) / (time.time() - began)

    # what it has come to
    for name, reason in skipped:
        print(f"note: skipped {data.root / name}: {reason}")
    if len(skipped) == len(rows):
        fail(f"--data {data.root}: no image can be decoded")
    if skipped and "test" not in data.folders:
        print("note: no test folder: without the skipped images other ones will be held out than of the source; remove them there too")
    if data.groups:
        print("note: the copy knows nothing of the column group; give --groups with it")
    if copied:
        print(f"note: {counted(copied, 'image')} of {args.size} px or more: copied as they are")
    given = {key: value for key, value in vars(args).items() if key != "began"}
    record = {"about": said["about"], "args": given, "images": len(rows) - len(skipped), "skipped": skipped, "copied": copied}
    record |= {"torch": torch.__version__, "code": code_version(), "seconds": round(clock() - args.began, 2)}
    write_json(part / "upsample.json", record)
    os.replace(part, to)
    more = f", {counted(len(skipped), 'image')} skipped" if skipped else ""
    print(f"wrote {to}: {counted(len(todo) - len(skipped), 'image')}{more}, {rate:.1f} images/s")


# ---- command line -------------------------------------------------------------------------------------------------------


def main():
    args = arguments()
    first_rank_goes_on()
    device, dtype = pick_device(args.device, args.precision)
    if args.task == "train":
        return train(args, device, dtype)

    args.batch = args.batch or (8 if device.type == "cpu" else 32)
    told, state = read_weights(args.weights)
    try:
        nets = build(state, args.dialect)
    except ValueError as error:
        fail(f"--weights {args.weights}: {why(error)}")
    models = {name: as_model(fold(net, dtype), name, 0, device, dtype, file_sha256(args.weights)) for name, net in nets.items()}
    if args.dialect:
        low, high = (255 * (np.array(IMAGENET[0]) + sign * np.array(IMAGENET[1])) for sign in (-1, 1))
        print(f"note: after tanh and de-normalising no value is below {low.min():.0f} or above {high.max():.0f} of 255: white turns grey")
    try:
        {"apply": apply, "eval": evaluate}[args.task](args, models, told)
    except OSError as error:
        fail(f"{error.filename or args.data}: {why(error)}; what is finished is kept, the same command goes on")


if __name__ == "__main__":
    main()
