"""Prompts: which caption template suits this data set, and does an ensemble of several help? Chosen on training images.

    python prompts.py --out best.json                                    # the toy world: about .59 becomes .61, in 6 s
    python zero_shot.py --prompts best.json                              # every script takes what was chosen
    python prompts.py --data fruits360 --model ViT-B/32 --templates my_templates.txt

Every template is scored over all classes on validation images, or on training images where there are none; then the best
one is joined by others while that helps (greedy forward selection, as OpenAI did for ImageNet). Test images report only.
What was chosen used labels, so it is no longer zero-shot. Copy this file and common.py to use it elsewhere.
"""

import argparse
import math

from common import F, add_flags, counted, evaluate, fail, first_rank_goes_on, load, progress, read_templates, report, some, torch

# what captions of pictures vary in; the plain ones first, because the first of equals is taken
POOL = [
    # article and number
    "a photo of a {}.", "a {}.", "{}", "the {}.", "one {}.", "this is a {}.", "there is a {}.", "a photo of the {}.",
    "a photo of one {}.", "a photo of a single {}.", "two photos of a {}.", "a photo of many {}.", "a photo of several {}.",
    "a pile of {}.", "a photo of my {}.", "an example of a {}.", "look, a {}!",
    # medium
    "a picture of a {}.", "an image of a {}.", "a photograph of a {}.", "a snapshot of a {}.", "a drawing of a {}.",
    "a sketch of a {}.", "a painting of a {}.", "a watercolour of a {}.", "a cartoon of a {}.", "an illustration of a {}.",
    "a 3d render of a {}.", "a computer graphic of a {}.", "a scan of a {}.", "an icon of a {}.", "a frame of a video of a {}.",
    "a screenshot of a {}.", "a product photo of a {}.", "a studio photo of a {}.", "a photo from a catalogue of a {}.",
    # quality
    "a good photo of a {}.", "a bad photo of a {}.", "a blurry photo of a {}.", "a sharp photo of a {}.",
    "a low resolution photo of a {}.", "a high resolution photo of a {}.", "a pixelated photo of a {}.", "a noisy photo of a {}.",
    "a jpeg of a {}.", "a thumbnail of a {}.",
    # framing
    "a close-up of a {}.", "a photo of a {} from above.", "a photo of a {} from the side.", "a photo of a {} in the distance.",
    "a cropped photo of a {}.", "a centred photo of a {}.", "a photo of a {} on a white background.", "a photo of a {} outdoors.",
    "a photo of a {} on a table.", "a photo of a part of a {}.", "an upside down photo of a {}.",
    # size and looks
    "a photo of a small {}.", "a photo of a large {}.", "a photo of a nice {}.", "a photo of an ordinary {}.",
    "a photo of a strange {}.", "a photo of a clean {}.", "a photo of a dirty {}.", "a photo of a whole {}.",
    # light
    "a bright photo of a {}.", "a dark photo of a {}.", "a black and white photo of a {}.", "a colourful photo of a {}.",
    "a photo of a {} in sunlight.", "a photo of a {} in shadow.",
]  # fmt: skip


def with_type(template):
    """The template once more, saying what the class is a type of."""
    end = template[-1] if template[-1] in ".!" else ""
    return f"{template.removesuffix(end)}, a type of {{type}}{end}"


def correct(x, z, y):
    """Which images (N,) are named right: unit-length x (N, E), class embeddings z (C, E), labels y (N,)."""
    return (x @ z.T).argmax(1) == y


def standard_error(values):
    """Of the mean of values (N,)."""
    return values.cpu().double().std().item() / math.sqrt(len(values))  # mps has no double


def select(x, y, z):
    """Greedy forward selection among templates z (T, C, E): a list of steps, all taken but perhaps the last.

    It starts with the best template. Each step adds the one that helps most, the first of equals, while its gain is more than
    one standard error of the paired difference. A step is {index, top1, gain, se, equals, taken}; gain and se are None at first.
    """
    steps, total, before = [], torch.zeros_like(z[0]), None
    for _ in progress(range(len(z)), "selecting", "step"):
        right = torch.stack([correct(x, F.normalize(total + t, dim=1), y) for t in z])  # (T, N)
        count = right.sum(1)
        count[[step["index"] for step in steps]] = -1
        index, *equals = torch.nonzero(count == count.max()).flatten().tolist()
        step = {"index": index, "top1": count.max().item() / len(y), "gain": None, "se": None, "equals": equals, "taken": True}
        if before is not None:
            difference = right[index].cpu().double() - before.cpu().double()
            step["gain"], step["se"] = difference.mean().item(), standard_error(difference)
            # one image more is exactly one standard error, but for rounding: a tie, and ties go to fewer templates
            step["taken"] = step["gain"] > 0 and step["gain"] > step["se"] * (1 + 1e-9)
        steps.append(step)
        if not step["taken"]:
            break
        before, total = right[index], total + z[index]
    return steps


def rank(x, y, z, pool):
    """For each template of the pool: its accuracies on unit-length x (N, E) with labels y (N,), by its class embeddings z (T, C, E)."""
    rows = []
    for template, one in zip(pool, z):
        logits = x @ one.T
        right = logits.argmax(1) == y
        top5 = (logits.topk(min(5, len(one)), dim=1).indices == y[:, None]).any(1)
        row = {"top1": right.cpu().double().mean().item(), "top5": top5.cpu().double().mean().item(), "se": standard_error(right)}
        rows.append({"template": template, **row})
    return rows


def print_choice(ranked, steps, pool, images):
    """The ten best templates, on `images` in words, and how the ensemble grew."""
    print(f"{counted(len(pool), 'template')} on {images}, the best of them (top-1 ± standard error, top-5)")
    for row in sorted(ranked, key=lambda row: -row["top1"])[:10]:
        print(f"  {row['top1']:.3f} ± {row['se']:.3f}   {row['top5']:.3f}   {row['template']}")
    print("chosen one after the other (top-1, gain ± its standard error)")
    for step in steps:
        gain = "" if step["gain"] is None else f"{step['gain']:+.3f} ± {step['se']:.3f}"
        end = "" if step["taken"] else "   not taken: " + ("no more than one standard error" if step["gain"] > 0 else "no gain")
        print(f"  {step['top1']:.3f}   {gain:14}   {pool[step['index']]}{end}")
        if step["equals"]:
            print(f"  {'':22}   as good, and passed over for it: {some([pool[i] for i in step['equals']])}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, "data model weights act type classnames label-from groups fit seed device precision batch out")
    parser.add_argument("--templates", metavar="FILE", help="choose among those of a .json or text file (a pool of our own)")
    args = parser.parse_args()

    # the templates that there are to choose from, and the images that choose
    data, model = load(args, union=True)
    pool, chosen_with = [form for t in POOL for form in ((t, with_type(t)) if data.type else (t,))], 0
    if args.templates:
        pool, chosen_with = read_templates([args.templates], data.type)
        pool = list(dict.fromkeys(pool))
    split = "val" if data.splits.get("val") else "train"
    if len(data.files(split)) < 2:
        fail(f"--data {args.data}: one {split} image can choose nothing; add more")
    z = model.classifier(data.words, pool, data.type, each=True)  # (T, C, E)
    images = data.images(model.view, [split, "test"])
    (x, y), (x_test, y_test) = (model.features(i) for i in images.values())
    first_rank_goes_on()
    x, x_test = F.normalize(x, dim=1), F.normalize(x_test, dim=1)

    # each on its own, then together while that helps
    ranked, steps = rank(x, y, z, pool), select(x, y, z)
    best = [step["index"] for step in steps if step["taken"]]
    print_choice(ranked, steps, pool, counted(len(y), f"{split} image"))

    # what it comes to on test images; embedded anew, as zero_shot.py will do it: 16 bits round by the batch
    candidates = {"default": data.templates, "best": [pool[best[0]]], "ensemble": [pool[i] for i in best], "all": pool}
    names = {"default": "default", "best": "best single", "ensemble": f"ensemble of {len(best)}", "all": f"all {len(pool)}"}
    logits = {name: x_test @ model.classifier(data.words, templates, data.type).T for name, templates in candidates.items()}
    tested = {name: evaluate(logits[name], y_test, data.classes, images["test"].clusters) for name in candidates}
    told = ("{} {:.3f} ({:.3f} to {:.3f})".format(names[name], m["top1"], *m["top1_ci95"]) for name, m in tested.items())
    print(f"test: {', '.join(told)}")
    print(f"all that follows is of the {names['ensemble']}")
    metrics = {"templates": ranked, "ensemble": candidates["ensemble"], **tested["ensemble"]}
    metrics["candidates"] = {name: {key: m[key] for key in ("top1", "top1_ci95")} for name, m in tested.items()}
    report(args, data, model, images, metrics, "chosen prompts", logits["ensemble"], len(y) + chosen_with, history=steps)


if __name__ == "__main__":
    main()
