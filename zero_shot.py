"""Zero-shot: name the classes of images by comparing them with captions, as in CLIP (Radford et al. 2021); no training.

    python zero_shot.py                                                # the toy world: about .6 in seconds, once it is made
    python zero_shot.py --data fruits360 --model RN101 --grid grid.png
    python zero_shot.py --images cat.jpg --labels "a cat" "a dog"      # any pictures, any labels, no data set

Copy this file and common.py to use it elsewhere.
"""

import argparse
from functools import partial

from common import (
    F,
    add_flags,
    atomic,
    check_pictures,
    counted,
    draw_pictures,
    ending,
    evaluate,
    first_rank_goes_on,
    given,
    load,
    load_model,
    name_pictures,
    np,
    report,
    wrap,
)

GREEN, RED = "#1a7f37", "#c62828"
NOTE = "note: probabilities from captions alone are not calibrated: no labelled image has said how far to trust them"


def zero_shot(x, z, scale, bias=0.0):
    """Logits (N, C): scaled cosine similarity of image features x (N, E) and unit-length class embeddings z (C, E), and SigLIP's bias."""
    return scale * F.normalize(x, dim=1) @ z.T + bias


def draw_grid(file, pixels, predicted, true, title):
    """PNG of uint8 images (B, S, S, 3), each captioned `Predicted (True)` in green where right, red where wrong."""
    captions = [wrap(f"{p} ({t})", 29) for p, t in zip(predicted, true)]
    for i, names in enumerate(zip(predicted, true)):
        if "\n" in captions[i]:  # a line for each name, or more, so that names are whole
            captions[i] = "{}\n({})".format(*(wrap(name, 25) for name in names))
    draw_pictures(file, pixels, captions, [GREEN if p == t else RED for p, t in zip(predicted, true)], title)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "data model weights act prompts type classnames label-from groups fit seed device precision batch out")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="(%(default)s)")
    parser.add_argument("--grid", type=ending(".png"), metavar="FILE", help="draw 16 random images of the split as PNG (none)")
    parser.add_argument(
        "--images", type=given, nargs="+", metavar="FILE", help="classify these pictures or folders of them instead of --data"
    )
    parser.add_argument("--labels", type=given, nargs="+", metavar="TEXT", help="captions for --images, used as they are")
    add_flags(parser, "csv bom")
    args = parser.parse_args()
    if (args.images is None) != (args.labels is None):
        parser.error("--images and --labels belong together")
    if args.images and (args.out or args.grid):
        parser.error("--images only names pictures: --out and --grid need --data")
    if (args.csv and not args.images) or (args.bom and not args.csv):
        parser.error("--csv is for --images, --bom for --csv")

    # any pictures, any labels
    if args.images:
        first_rank_goes_on()
        check_pictures(args.images, args.csv)
        model = load_model(args.model or "ViT-B/32", args.device, args.weights, args.precision, args.act, batch=args.batch, fit=args.fit)
        z = model.embed(args.labels)
        named = partial(name_pictures, model, args.images, lambda x: zero_shot(x, z, model.logit_scale, model.logit_bias), args.labels)
        named(table=args.csv, bom=args.bom)
        return print(NOTE)

    # each image takes the class whose captions lie nearest; a class needs no training images (union)
    data, model = load(args, union=True)
    z = model.classifier(data.words, data.templates, data.type)
    splits = data.images(model.view, [args.split])
    images = splits[args.split]
    x, labels = model.features(images)
    first_rank_goes_on()
    logits = zero_shot(x, z, model.logit_scale, model.logit_bias)
    more = " ..." if len(data.templates) > 1 else ""
    print(f"{counted(len(data.templates), 'prompt')}: {data.templates[0].replace('{type}', data.type)}{more}")
    print(NOTE)
    metrics = evaluate(logits, labels, data.classes, images.clusters)
    if args.grid:
        pick = np.random.default_rng(args.seed).permutation(len(images))[:16]
        predicted, true = ([data.classes[i] for i in y[pick].tolist()] for y in (logits.argmax(1), labels))
        title = f"{data.name}: zero-shot, {model.name}, accuracy {metrics['top1']:.3f}; predicted (true)"
        with atomic(args.grid) as temporary:
            draw_grid(temporary, images[pick].permute(0, 2, 3, 1).numpy(), predicted, true, title)
        print(f"drew {args.grid}")
    # last: where there is a record, and make goes by it, there is the picture too
    report(args, data, model, splits, metrics, "zero-shot", logits, labels_used=data.chosen_with)


if __name__ == "__main__":
    main()
