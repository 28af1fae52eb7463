"""What makes the pipeline fast, each against the plain way, side by side on this machine.

    python bench/pipeline.py [--device cuda]        # ratios above 1 are gains

Upsampling in uint8 batches against floats and against Pillow, 16-bit against 32-bit encoders, small batches against large
ones on a CPU, decoding on threads against one image at a time. Prints images/s of both and their ratio, and how far the results lie apart.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import clip
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import CLIP, _read_image as read_image, pick_device, upsample


def rate(work, images, device, repeat=5):
    """Images a second, the median of `repeat` runs after one to warm up."""
    times = []
    for _ in range(repeat + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return images / np.median(times[1:])


def compare(what, ours, plain):
    print(f"{what:60} {ours:9,.0f} against {plain:9,.0f} images/s, ratio {ours / plain:.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="(%(default)s)")
    args = parser.parse_args()
    device, dtype = pick_device(args.device)
    rng = np.random.default_rng(0)

    smooth = rng.integers(0, 256, (256, 12, 12, 3), np.uint8)
    pictures = np.stack([np.asarray(Image.fromarray(a).resize((100, 100), Image.BICUBIC)) for a in smooth])
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).to(device)

    def floats():
        y = F.interpolate(x.float(), size=(224, 224), mode="bicubic", antialias=True)
        return y.clamp(0, 255).round().to(torch.uint8)

    def pillow():
        return np.stack([np.asarray(Image.fromarray(a).resize((224, 224), Image.BICUBIC)) for a in pictures])

    ours = rate(lambda: upsample(x, 224), len(x), device)
    compare("upsampling 100 to 224 px: uint8 batches, float batches", ours, rate(floats, len(x), device))
    compare("upsampling 100 to 224 px: batches, Pillow", ours, rate(pillow, len(x), device))
    exact = torch.from_numpy(pillow()).permute(0, 3, 1, 2).int()
    print(f"  farthest from Pillow, of 255: {(upsample(x, 224).cpu().int() - exact).abs().max().item()}")

    x = torch.randn(64, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    encoders = {"CLIP ViT-B/32": "ViT-B/32", "CLIP RN50": "RN50", "mobilenet_v2": None, "resnet50": None}
    for name, shape in encoders.items():
        net = clip.model.CLIP(*CLIP[shape][1], 77, 49408, 64, 1, 1).visual if shape else torchvision.models.get_model(name)
        net = net.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)

        def encode(net=net, dtype=torch.float32):
            with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                return net(x)

        if dtype != torch.float32:
            plain = rate(encode, len(x), device, 3)
            compare(f"{name}: {str(dtype)[6:]}, float32", rate(lambda encode=encode: encode(dtype=dtype), len(x), device, 3), plain)

        if device.type == "cpu":
            many = x.repeat(4, 1, 1, 1).contiguous(memory_format=torch.channels_last)

            def batches(size, net=net, many=many):
                with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    return [net(part) for part in many.split(size)]

            small, large = (rate(lambda batches=batches, size=size: batches(size), len(many), device, 2) for size in (32, 256))
            compare(f"{name}: batches of 32, of 256", small, large)

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.jpg" for i in range(200)]
        for file, a in zip(files, smooth):
            Image.fromarray(a).resize((500, 400), Image.BICUBIC).save(file, quality=90)

        def threads():
            with ThreadPoolExecutor() as pool:
                return list(pool.map(lambda f: read_image(f, 224), files))

        cpu = torch.device("cpu")
        one = rate(lambda: [read_image(f, 224) for f in files], len(files), cpu, 3)
        compare("decoding 500 x 400 JPEG to 224 px: threads, one at a time", rate(threads, len(files), cpu, 3), one)


if __name__ == "__main__":
    main()
