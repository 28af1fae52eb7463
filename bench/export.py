"""How far an exported ONNX graph is from our own predictions, for each family of encoders: float32 on both sides, on a CPU.

    python bench/export.py data/sports/test     # a minute

mobilenet_v2 has its published weights, the others random ones. A row: largest difference of a probability, share of pictures with the
same class, size of the file, seconds to export. The head is random, its logits spread enough to make probabilities differ.
"""

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torchvision
from clip.model import CLIP as Network

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import CLIP, _export as export, _Folder as Folder, _read_image as read_image, at_least, load_model

MODELS = ("toy-ViT", "toy-RN", "mobilenet_v2", "ViT-B/32", "resnet50")
CLASSES = 20


def random_weights(name, folder):
    """A file of random weights of a published shape, with a small text side; batch norm keeps what it starts with."""
    torch.manual_seed(0)
    if name in CLIP:
        embed, size, layers, width, patch = CLIP[name][1]
        net = Network(embed, size, layers, width, patch, 77, 49408, 128, 2, 1)
    else:
        net = torchvision.models.get_model(name, weights=None)
    torch.save(net.state_dict(), folder / "random.pt")
    return folder / "random.pt"


def compare(name, files, folder):
    """(largest difference, share of equal classes, megabytes, seconds)."""
    import onnxruntime  # here, because --help needs it not

    made = None if name == "mobilenet_v2" else random_weights(name, folder)
    model = load_model(name, "cpu", made, "float32", "quickgelu" if name == "ViT-B/32" else None)
    x = torch.from_numpy(np.stack([read_image(f, model.size)[0] for f in files])).permute(0, 3, 1, 2).contiguous()
    f = model.encode_image(x).clone()
    weight = torch.randn(CLASSES, model.width)
    weight, bias = weight / ((f - f.mean(0)) @ weight.T).std(), torch.randn(CLASSES)
    weight, bias = 2 * weight, bias - 2 * weight @ f.mean(0)

    def head(f):
        return f @ weight.T + bias

    began = time.time()
    export(model, head, [f"class {i}" for i in range(CLASSES)], 1.5, folder / "model.onnx")
    seconds = time.time() - began
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    theirs = session.run(None, {"pictures": x.numpy()})[0]
    ours = (head(f) / 1.5).softmax(1).numpy()
    size = (folder / "model.onnx").stat().st_size / 1e6
    return np.abs(ours - theirs).max(), (ours.argmax(1) == theirs.argmax(1)).mean(), size, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="a folder of pictures")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--most", type=at_least(1), default=24, help="pictures, evenly spread (%(default)s)")
    args = parser.parse_args()
    files = [args.pictures / path for path, *_ in Folder(args.pictures).files(args.pictures)]
    files = [files[i] for i in np.linspace(0, len(files) - 1, min(len(files), args.most)).astype(int)]
    with TemporaryDirectory() as folder:
        rows = [(name, *compare(name, files, Path(folder))) for name in args.models]
    print(f"{len(files)} pictures\n{'model':14}{'difference':>12}{'same class':>12}{'MB':>8}{'seconds':>9}")
    for name, difference, same, size, seconds in rows:
        print(f"{name:14}{difference:12.1e}{same:12.3f}{size:8.1f}{seconds:9.1f}")


if __name__ == "__main__":
    main()
