"""How fast `upsample.py apply` is, against the same generator on one image at a time in float32, side by side.

    python bench/upsample.py        # SRGAN's size, 16 blocks of 64 channels, 100 px to 224 px; the ratio is a gain

Both read the same JPEG files and write PNG files. Prints images/s of both, their ratio, and how far the pictures lie apart.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import upsample
from common import pick_device


def write_pictures(folder, count):
    rng = np.random.default_rng(0)
    for i in range(count):
        file = folder / ("Test" if i % 4 == 0 else "Training") / f"{i % 2}" / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
        small.resize((100, 100), Image.BICUBIC).save(file, quality=92)


def one_at_a_time(net, device, size):
    for file in Path("data/it").rglob("*.jpg"):
        x = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None].to(device)
        with torch.no_grad():
            y = net(x / 255).mul(255).clamp(0, 255).round().to(torch.uint8)[0].permute(1, 2, 0).cpu().numpy()
        to = Path("plain") / file.relative_to("data/it").with_suffix(".png")
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(y).resize((size, size), Image.BICUBIC).save(to)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48, help="(%(default)s)")
    parser.add_argument("--blocks", type=int, default=16, help="(%(default)s)")
    parser.add_argument("--width", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="the fastest of so many, in turns (%(default)s)")
    args = parser.parse_args()
    device, dtype = pick_device()
    torch.manual_seed(0)
    net = upsample.Generator(args.blocks, args.width)
    torch.nn.init.normal_(net.conv3[0].weight, std=0.002)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_pictures(Path("data/it"), args.images)
        save_file({f"srgan.{key}": tensor.contiguous() for key, tensor in net.state_dict().items()}, "it.safetensors")
        net.to(device).eval()
        for i in range(args.rounds):
            started = time.perf_counter()
            one_at_a_time(net, device, 224)
            middle = time.perf_counter()
            sys.argv = f"upsample.py apply --data it --weights it.safetensors --size 224 --to ours{i}".split()
            with contextlib.redirect_stdout(io.StringIO()):
                upsample.main()
            times.append((middle - started, time.perf_counter() - middle))
        apart = [
            np.abs(np.asarray(Image.open(file)).astype(int) - np.asarray(Image.open(Path("ours0") / file.relative_to("plain")))).max()
            for file in Path("plain").rglob("*.png")
        ]
        os.chdir("/")
    plain, ours = args.images / np.min(times, 0)
    print(
        f"apply, {args.blocks} x {args.width}, {device} {str(dtype)[6:]}: {ours:.1f} against {plain:.1f} images/s, ratio {ours / plain:.2f}"
    )
    print(f"farthest apart, of 255: {max(apart)} (16 against 32 bits)")


if __name__ == "__main__":
    main()
