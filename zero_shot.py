"""Zero-shot: name the classes of images by comparing them with captions, as in CLIP (Radford et al. 2021); no training.

    python zero_shot.py                                                # the toy world: about .7 in seconds, once it is made
    python zero_shot.py --data fruits360 --model RN101 --grid grid.png
    python zero_shot.py --images cat.jpg --labels "a cat" "a dog"      # any pictures, any labels, no data set

Copy this file and common.py to use it elsewhere.
"""

import argparse
import textwrap
import time

import numpy as np
import torch
import torch.nn.functional as F

from common import (
    add_flags,
    atomic,
    class_embeddings,
    clusters,
    counted,
    default_model,
    embed_captions,
    evaluate,
    features,
    finite,
    load_data,
    load_images,
    load_model,
    print_metrics,
    print_ranking,
    print_setup,
    read_pictures,
    read_templates,
    write_result,
)

GREEN, RED = "#1a7f37", "#c62828"


def zero_shot(x, z, scale):
    """Logits (N, C): scaled cosine similarity of image features x (N, E) and unit-length class embeddings z (C, E)."""
    return scale * F.normalize(x, dim=1) @ z.T


def draw_grid(file, pixels, predicted, true, title):
    """PNG of uint8 images (B, S, S, 3), four in a row, each captioned `Predicted (True)` in green where right, red where wrong."""
    from matplotlib.figure import Figure  # here, because it takes half a second to import

    def broken(text, letters):  # capitals are wider; after _ as after a space
        letters -= letters * sum(map(str.isupper, text)) // (4 * len(text) + 1)
        return textwrap.fill(text.replace("_", "_ "), letters).replace("_ ", "_")

    captions = [broken(f"{p} ({t})", 29) for p, t in zip(predicted, true)]
    for i, names in enumerate(zip(predicted, true)):
        if "\n" in captions[i]:  # a line for each name, or more, so that names are whole
            captions[i] = "{}\n({})".format(*(broken(name, 25) for name in names))
    lines = 1 + max(caption.count("\n") for caption in captions)
    rows = -(-len(pixels) // 4)
    fig = Figure(figsize=(9, rows * (2.1 + 0.16 * lines) + 0.4), layout="constrained")
    axes = fig.subplots(rows, 4, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
        ax.set_anchor("N")  # the layout reckons with captions above the whole of a place
    for ax, image, caption, right in zip(axes.flat, pixels, captions, np.array(predicted) == np.array(true)):
        ax.imshow(image)
        ax.set_title(caption, color=GREEN if right else RED, fontsize=9, parse_math=False)
    fig.suptitle(broken(title, 90), fontsize=11, parse_math=False)
    fig.savefig(file, format="png", dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "data model weights act prompts type classnames groups seed device precision batch out")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="(%(default)s)")
    parser.add_argument("--grid", metavar="FILE", help="draw 16 random images of the split as PNG (none)")
    parser.add_argument("--images", nargs="+", metavar="FILE", help="classify these pictures instead of --data")
    parser.add_argument("--labels", nargs="+", metavar="TEXT", help="captions for --images, used as they are")
    args = parser.parse_args()
    started = time.time()
    if (args.images is None) != (args.labels is None):
        parser.error("--images and --labels belong together")
    if args.images and (args.out or args.grid):
        parser.error("--images only prints: --out and --grid need --data")

    if args.images:
        model = load_model(args.model or default_model(""), args.device, args.weights, args.precision, args.act)
        z = embed_captions(model, args.labels)
        pictures = read_pictures(args.images, model.size)
        x = torch.cat([model.encode_image(batch) for batch in pictures.split(args.batch or model.batch)]).cpu()
        finite(x, model, "features")
        return print_ranking(args.images, args.labels, zero_shot(x, z, model.logit_scale).softmax(1))

    # what can be mistyped first, what may be downloaded afterwards
    data = load_data(args.data, args.classnames, args.type, args.seed, union=True, groups=args.groups)
    args.type, (args.prompts, labels_used) = data.type, read_templates(args.prompts, data.type)
    args.model = args.model or default_model(args.data)
    model = load_model(args.model, args.device, args.weights, args.precision, args.act)
    z = class_embeddings(model, data.words, args.prompts, data.type)
    images = load_images(data, args.split, model.size)
    x, labels = features(model, images, args.batch)
    logits = zero_shot(x, z, model.logit_scale)
    m = evaluate(logits, labels, data.classes, clusters(images))

    print_setup(data, model, {args.split: images})
    more = " ..." if len(args.prompts) > 1 else ""
    print(f"{counted(len(args.prompts), 'prompt')}: {args.prompts[0].replace('{type}', data.type)}{more}")
    print_metrics(m)
    if args.grid:
        pick = np.random.default_rng(args.seed).permutation(len(labels))[:16]
        guess, true = logits.numpy().argmax(1)[pick], labels[pick]
        with atomic(args.grid) as temporary:
            title = f"{data.name}: zero-shot, {model.name}, accuracy {m['top1']:.3f}; predicted (true)"
            draw_grid(temporary, images.pixels[images.rows[pick]], [data.classes[i] for i in guess], [data.classes[i] for i in true], title)
        print(f"drew {args.grid}")
    if args.out:
        write_result(args.out, args, data, model, {args.split: images}, m, started, logits, labels_used)


if __name__ == "__main__":
    main()
