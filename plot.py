"""Figures, table and recommendation of the study, from results/ alone: no model is run and no data set is read.

    python plot.py --data toy                # figures/toy/*.png, in 10 s
    python plot.py --data toy --table        # Markdown: each result with its command, and what follows from them

NAME-srgan, the data set that upsample.py made of NAME, is shown beside NAME. Results of other pictures or weights than the
rest are refused; what is missing is named, and the exit code is then 1. It needs results that the scripts wrote with --out.

    right    (N,) for each test image 1 or 0, or the share of the draws of few_shot.py that named it right
"""

import argparse
import json
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from common import atomic, class_bootstrap, counted, fail, paired_difference, read_json, some, spelled, why, wilson

# Okabe and Ito's colours, which colour-blind people can tell apart, without yellow and black; three more for those with many models
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B4513", "#4B0082", "#7F7F7F")
GREEN, RED, GREY = "#1a7f37", "#c62828", "#777777"
MARKERS = {"zero-shot": "*", "linear probe": "o", "fine-tuned, ml": "s", "fine-tuned, cs": "D"}
STYLES = {"class-mean": ("v", ":"), "linear": ("o", "--"), "tip": ("^", "-."), "text-init": ("s", "-")}
UPSAMPLINGS = ("bicubic", "SRGAN")
SHOTS = ("1", "4", "16")  # labels a class that get a row in the table
ALIKE = 1.5  # times as fast: less is not told apart
COPIES = 0.2  # share of near-copies from which the numbers come with a warning


NEEDS = {  # what figures and table take from a record: metrics, arrays
    "zero_shot": (("top1", "confusions"), ("predicted", "pairs", "pictures")),
    "prompts": (("templates", "ensemble"), ("predicted",)),
    "few_shot": (("labels", "linear"), ("right",)),
    "linear_probe": (("images_per_second", "near_copies", "test_without_near_copies", "confusions"), ("predicted", "pairs", "pictures")),
    "finetune": (("val", "wise", "wise_alpha"), ("predicted",)),
    "upsample": (("psnr",), ("low", "original")),
    "train": ((), ()),
}


@dataclass
class Run:
    """A result: what it was made with, and the record itself."""

    script: str
    model: str
    variant: str  # of finetune.py ml, cs, frozen; of upsample.py train, eval
    upsampling: str
    record: dict
    file: Path

    def __post_init__(self):
        self.metrics, self.history = self.record["metrics"], self.record.get("history", [])
        saved = self.file.with_suffix(".npz")
        try:
            self.arrays = dict(np.load(saved)) if saved.exists() else {}
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            fail(f"{saved}: cannot be read: {why(error)}; delete it and its .json, and make makes both anew")
        if not self.arrays and self.variant != "train":
            fail(f"{saved}: missing beside its .json; delete that too, and make makes both anew")

    @property
    def method(self):
        names = {"zero_shot": "zero-shot", "prompts": "chosen prompts", "few_shot": "few labels", "linear_probe": "linear probe"}
        return names.get(self.script) or ("linear layer, random start" if self.variant == "frozen" else f"fine-tuned, {self.variant}")

    @property
    def few(self):
        """The method of few_shot.py that stands for a model: captions and labels together where there are captions."""
        return "text-init" if "text-init" in self.metrics else "linear"

    def shots(self, everything=False):
        """The labels a class that few_shot.py tried, as long as that is fewer than all; or the first that is all of them, too."""
        labels, total = self.metrics["labels"], self.record["data"]["counts"]["train"]
        return [k for k in labels if labels[k] < total] + [k for k in labels if labels[k] == total][: int(everything)]

    def right(self, k=None):
        """(N,), of k labels a class where the run is one of few_shot.py."""
        if k is None:
            return (self.arrays["true"] == self.arrays["predicted"]).astype(float)
        methods = [name for name in STYLES if name in self.metrics]
        return self.arrays["right"][list(self.metrics["labels"]).index(k), methods.index(self.few)].astype(float)

    def accuracy(self, k=None):
        """(test accuracy, low, high): the wider of its 95 % intervals over images and over classes."""
        right = self.right(k)
        return right.mean(), *wider(wilson(right.sum(), len(right)), class_bootstrap(right, self.arrays["true"]))


def wider(*intervals):
    return max(intervals, key=lambda i: i[1] - i[0])


def versus(a, b, k=None):
    """(mean of a - b, low, high) over the same test images, the wider interval; k as in Run.right, of a."""
    names = [[str(Path(path).with_suffix("")) for path in run.arrays["index"]] for run in (a, b)]
    if names[0] != names[1]:
        fail(f"{a.file} and {b.file}: tested on other images; delete the older one")
    d = paired_difference(a.right(k), b.right(), a.arrays["true"])
    return d["mean"], *wider(d["ci95"], d["ci95_class"])


def load(folder, name):
    """All runs of NAME and NAME-srgan, sorted; fails where they do not belong together."""
    runs, seen = [], {}
    for data, upsampling in zip((name, f"{name}-srgan"), UPSAMPLINGS):
        for file in sorted(Path(folder).glob(f"*/{data}/*.json")):
            if file.name.startswith("."):  # what a kill has left, or a Mac
                continue
            record = read_json(file)
            try:
                args, model = record["args"], record["model"]["name"] if record["script"] != "upsample" else ""
                variant = "frozen" if args.get("freeze") else args.get("method", args.get("task", ""))
                run = Run(record["script"], model, variant, upsampling, record, file)
                keys, arrays = NEEDS["train" if variant == "train" else run.script]
                if (
                    not {"command", "environment", "seconds"} <= {*record}
                    or not {*keys} <= {*run.metrics}
                    or not {*arrays} <= {*run.arrays}
                ):
                    raise KeyError
                made_of = {
                    f"pictures of {data}": record["data"]["fingerprint"],
                }
                if variant != "train":
                    made_of[f"test images of {name}"] = record["data"]["counts"].get("test")
                if model:
                    made_of[f"weights of {model}"] = record["model"]["sha256"]
                if upsampling == "SRGAN":
                    made_of[f"pictures of {name}"] = record["data"].get("made", {}).get("source")
            except (KeyError, TypeError, AttributeError):
                fail(f"{file}: not a result of these scripts, or of older ones; make it anew, or take it out of {folder}")
            for what, value in made_of.items():
                first = seen.setdefault(what, (value, file))
                if first[0] != value:
                    fail(f"{first[1]} and {file}: of different {what}; delete the older one and run make again")
            if (twin := seen.setdefault((run.script, model, variant, upsampling), file)) != file:
                fail(f"{twin} and {file}: two results of one run; take one out of {folder}")
            runs.append(run)
    return runs


class Study:
    """The runs of a data set, and a colour for each model, the same in each figure."""

    def __init__(self, name, runs):
        self.name, self.runs = name, runs
        self.models = sorted({run.model for run in runs if run.model}, key=lambda m: (not self.find("zero_shot", m), m))
        self.runs = sorted(runs, key=lambda run: self.models.index(run.model) if run.model else -1)
        self.colours = {model: COLOURS[i % len(COLOURS)] for i, model in enumerate(self.models)}
        self.speeds = {run.model: run.metrics["images_per_second"] for run in self.find("linear_probe")}
        self.chance = next((1 / len(run.record["data"]["classes"]) for run in runs), 0)

    def find(self, script, model=None, variant=None, upsampling="bicubic"):
        return [
            run
            for run in self.runs
            if run.script == script and model in (None, run.model) and variant in (None, run.variant) and run.upsampling == upsampling
        ]

    def one(self, *args):
        return next(iter(self.find(*args)), None)


def missing(study):
    """Files that these results lack to be whole: what one model of a kind has, each should have."""
    kinds, lacks = {}, []
    for run in study.runs:
        if run.model:
            kinds.setdefault((run.script, run.variant, run.upsampling), run.file.parent)
    clips = {run.model for run in study.runs if run.script in ("zero_shot", "prompts") or run.variant == "cs" or "tip" in run.metrics}
    for (script, variant, upsampling), folder in kinds.items():
        clip_only = script in ("zero_shot", "prompts") or variant == "cs" or upsampling == "SRGAN"
        pool = [m for m in study.models if not clip_only or m in clips]
        names = [spelled(m) + f"-{variant}".rstrip("-") for m in pool if not study.find(script, m, variant, upsampling)]
        lacks += [str(folder / f"{name}.json") for name in names]
    return lacks


# ---- figures ----------------------------------------------------------------------------------------------------------


def panels(count, width=9.0, height=3.6, across=3, **kwargs):
    """A figure as wide as a README, and `count` axes in rows of `across`."""
    down = -(-count // across)
    fig = Figure(figsize=(width, height * down), layout="constrained")
    grid = fig.subplots(down, min(count, across), squeeze=False, **kwargs).ravel()
    for ax in grid:
        ax.grid(color="#e5e5e5", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in grid[count:]:
        ax.remove()
    return fig, grid[:count]


def shot_axis(ax, ks, everything=None):
    """Log axis of labels a class, with 0 to the left of 1 and all of them at `everything`."""
    ax.set_xscale("log", base=2)
    ticks = {0.5: "0", **{k: str(k) for k in ks}, **({everything: "all"} if everything else {})}
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.minorticks_off()
    ax.set_xlabel("labels a class")


def chance_line(ax, chance):
    ax.axhline(chance, color=GREY, linewidth=0.8, linestyle=(0, (2, 2)), label="chance")


def draw_zero_shot(study, run):
    """Random test pictures, captioned `Predicted (True)`."""
    a, classes = run.arrays, run.record["data"]["classes"]
    fig = Figure(figsize=(9, 9.8), layout="constrained")
    for ax in (axes := fig.subplots(4, 4)).flat:
        ax.axis("off")
    for ax, i, picture in zip(axes.flat, a["shown"], a["pictures"]):
        guess, true = classes[a["predicted"][i]], classes[a["true"][i]]
        ax.imshow(picture)
        caption = f"{guess} ({true})"
        if len(caption) > 28:  # one line each, and no longer than the picture is wide
            caption = "\n".join((textwrap.shorten(guess, 26, placeholder=" …"), textwrap.shorten(f"({true})", 26, placeholder=" …)")))
        ax.set_title(caption, color=GREEN if guess == true else RED, fontsize=9, parse_math=False)
    title = f"{study.name}: zero-shot, {run.model}, accuracy {run.metrics['top1']:.3f}; predicted (true)"
    fig.suptitle(title, fontsize=11, parse_math=False)
    return fig


def draw_few_shot(study):
    """Test accuracy against labels a class; mean and standard deviation of the draws; zero-shot is the star at 0."""
    runs = study.find("few_shot")
    fig, axes = panels(len(runs), sharey=True)
    for ax, run in zip(axes, runs):
        m, colour = run.metrics, study.colours[run.model]
        ks = run.shots(everything=True)
        for method in [name for name in STYLES if name in m]:
            marker, line = STYLES[method]
            mean, spread = ([m[method][k][what] or 0 for k in ks] for what in ("mean", "std"))
            look = {"marker": marker, "linestyle": line, "color": colour, "ms": 4, "lw": 1.2, "elinewidth": 0.8}
            ax.errorbar([int(k) for k in ks], mean, spread, label=method, **look)
        if "zero_shot" in m:
            low, high = wider(m["zero_shot_ci95"], m["zero_shot_ci95_class"])
            error = [[m["zero_shot"] - low], [high - m["zero_shot"]]]
            ax.errorbar([0.5], [m["zero_shot"]], error, marker="*", ms=11, color=colour, linestyle="", label="zero-shot", elinewidth=0.8)
        chance_line(ax, study.chance)
        shot_axis(ax, map(int, ks), *map(int, ks[len(run.shots()) :]))
        ax.set_title(run.model, fontsize=10)
        ax.set_ylim(0, 1)
        ax.set_ylabel("test accuracy")
    most = max(axes, key=lambda ax: len(ax.get_legend_handles_labels()[1]))
    most.legend(fontsize=7, loc="lower right")
    return fig


def draw_curves(study, lines):
    """Training and validation accuracy against epochs; `lines` are (run, label, colour, line style)."""
    fig, axes = panels(2, sharey=True)
    for i, (run, label, colour, line) in enumerate(lines):
        rows = [row for row in run.history if "epoch" in row and row["seed"] == run.history[0]["seed"]]
        count = run.record["data"]["counts"]["val"]
        trained = [row for row in rows if row["train"] is not None]
        axes[0].plot([r["epoch"] for r in trained], [r["train"] for r in trained], line, color=colour, label=label, lw=1.4)
        val = np.array([row["val"] for row in rows])
        axes[1].plot([row["epoch"] for row in rows], val, line, color=colour, label=label, lw=1.4)
        low, high = wilson(val[-1] * count, count)
        end, error = rows[-1]["epoch"] * (1.02 + 0.015 * i), [[val[-1] - low], [high - val[-1]]]
        axes[1].errorbar([end], val[-1:], error, color=colour, elinewidth=0.8, capsize=2)
    for ax, split in zip(axes, ("training batches, augmented", "validation, 95 % interval at the end")):
        ax.set_title(split, fontsize=10)
        ax.set_xlabel("epoch")
        if study.chance > ax.get_ylim()[0]:
            chance_line(ax, study.chance)
    axes[0].set_ylabel(f"accuracy (chance {study.chance:.3f})")
    fig.legend(*axes[1].get_legend_handles_labels(), fontsize=7.5, loc="outside lower center", ncols=3)
    return fig


def draw_frozen(study):
    """A linear layer alone from a random start, and all of the encoder from the linear probe."""
    lines = []
    for model in study.models:
        for variant, label, line in (("frozen", "linear layer alone, from random", "--"), ("ml", "all, from the probe", "-")):
            lines += [(run, f"{model}: {label}", study.colours[model], line) for run in study.find("finetune", model, variant)]
    return draw_curves(study, lines)


def draw_methods(study, model):
    """ml and cs on either upsampling."""
    lines = []
    for upsampling, colour in zip(UPSAMPLINGS, (study.colours[model], "#000000")):
        for variant, line in (("ml", "--"), ("cs", "-")):
            found = study.find("finetune", model, variant, upsampling)
            lines += [(run, f"{model}: {variant.upper()}, {upsampling}", colour, line) for run in found]
    return draw_curves(study, lines)


def draw_prompts(study):
    """Templates ranked by the accuracy on which they were chosen, ± one standard error: the best, the default, the worst."""
    runs = study.find("prompts")
    fig, axes = panels(len(runs), height=4.6, across=2)
    for ax, run in zip(axes, runs):
        ranked = sorted(run.metrics["templates"], key=lambda row: -row["top1"])
        places = {row["template"]: i for i, row in enumerate(ranked)}
        default = places.get("a photo of a {}, a type of {type}.", places.get("a photo of a {}."))
        shown = sorted(
            {*range(min(12, len(ranked))), *([] if default is None else [default]), *range(max(0, len(ranked) - 3), len(ranked))}
        )
        for y, i in enumerate(shown):
            row, chosen = ranked[i], ranked[i]["template"] in run.metrics["ensemble"]
            fill = study.colours[run.model] if chosen else "white"
            ax.errorbar([row["top1"]], [y], xerr=[row["se"]], marker="o", ms=5, color=study.colours[run.model], mfc=fill, elinewidth=1)
        names = [f"{i + 1}. {'(default) ' * (i == default)}{ranked[i]['template']}" for i in shown]
        ax.set_yticks(range(len(shown)), [textwrap.shorten(name, 46, placeholder=" …") for name in names], fontsize=6, parse_math=False)
        ax.invert_yaxis()
        split, count = next(iter(run.record["data"]["counts"].items()))
        ax.set_xlabel(f"accuracy on {count:,} {split} images", fontsize=8)
        ax.tick_params(axis="x", labelsize=7)
        ax.set_title(run.model, fontsize=9)
    fig.suptitle(f"of {len(ranked)} templates the best, the default, the worst; filled: chosen; chance {study.chance:.3f}", fontsize=9)
    return fig


def draw_confusions(study, most=3):
    """The most confused pairs of classes, as pictures: one that was mistaken, and one of the class it was taken for."""
    runs = [run for run in (*study.find("zero_shot"), *study.find("linear_probe")) if len(run.arrays["pairs"])]
    fig = Figure(figsize=(9, 1.75 * len(runs)), layout="constrained")
    fig.get_layout_engine().set(wspace=0.12)
    axes = fig.subplots(len(runs), most, squeeze=False)
    for row, run in zip(axes, runs):
        a, classes = run.arrays, run.record["data"]["classes"]
        counts = {(c["true"], c["predicted"]): f"{c['count']} of {c['count'] / c['share']:.0f}" for c in run.metrics["confusions"]}
        pictures = a["pictures"][len(a["shown"]) :].reshape(-1, 2, *a["pictures"].shape[1:])
        for ax in row:
            ax.axis("off")
        for ax, (mistaken, other), i in zip(row, pictures, a["pairs"][:, 0]):
            names = classes[a["true"][i]], classes[a["predicted"][i]]
            gap = np.full((mistaken.shape[0], max(1, mistaken.shape[1] // 8), 3), 255, np.uint8)
            ax.imshow(np.concatenate([mistaken, gap, other], 1))
            title = " → ".join(textwrap.shorten(name, 22, placeholder=" …") for name in names)
            ax.set_title(f"{title}\n{counts[names]}", fontsize=7.5, parse_math=False)
        place = {"transform": row[0].transAxes, "ha": "right", "va": "center"}
        row[0].text(-0.04, 0.5, f"{run.model}\n{run.method}", fontsize=8, parse_math=False, **place)
    return fig


def draw_wise(study):
    """WiSE-FT: validation accuracy of weights between start and fine-tuned; the chosen one is filled."""
    fig, (ax,) = panels(1, width=6.5)
    runs = [run for model in study.models for variant in ("ml", "cs") for run in study.find("finetune", model, variant)]
    runs = [run for run in runs if run.metrics["wise"]]
    for i, run in enumerate(runs):
        wise, colour, count = run.metrics["wise"], study.colours[run.model], run.record["data"]["counts"]["val"]
        x, y = np.array([float(a) for a in wise]), np.array(list(wise.values()))
        low, high = np.array([wilson(v * count, count) for v in y]).T
        place = x + 0.008 * (i - (len(runs) - 1) / 2)  # side by side, or bars would hide each other
        line, marker = ("-", "D") if run.variant == "cs" else ("--", "s")
        look = {"color": colour, "linestyle": line, "marker": marker, "mfc": "white", "lw": 1.2, "elinewidth": 0.5, "ms": 4}
        ax.errorbar(place, y, [y - low, high - y], label=f"{run.model}, {run.variant}", **look)
        at = np.argmin(np.abs(x - run.metrics["wise_alpha"]))
        ax.plot(place[at], y[at], marker, color=colour, ms=8, zorder=9)
    ax.set_xlabel("alpha: 0 is the start, 1 the best fine-tuned weights")
    ax.set_ylabel(f"validation accuracy, 95 % interval (chance {study.chance:.3f})", fontsize=8)
    ax.legend(fontsize=7, loc="lower right")
    return fig


def draw_upsampling(study):
    """Test pictures reduced 4 times, restored by bicubic and by SRGAN, and as they were."""
    run = study.one("upsample", None, "eval")
    names = [name for name in ("low", "bicubic", "pixel", "srgan", "original") if name in run.arrays]
    rows = len(run.arrays["low"])
    fig = Figure(figsize=(9, 9 / rows * len(names) + 0.3), layout="constrained")
    axes = fig.subplots(len(names), rows, squeeze=False)
    for line, name in zip(axes, names):
        for ax, picture in zip(line, run.arrays[name]):
            ax.imshow(picture, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
        m = run.metrics["psnr"].get(name)
        under = f"{m['mean']:.1f} dB" if m else f"{run.arrays[name].shape[1]} px"
        line[0].set_ylabel(f"{name.replace('srgan', 'SRGAN')}\n{under}", fontsize=9)
    count = run.record["data"]["counts"]["test"]
    fig.suptitle(f"{study.name}: test pictures, PSNR as mean of all {count:,}", fontsize=10, parse_math=False)
    return fig


def draw_summary(study):
    """Test accuracy with the wider interval, against labels a class and against the speed of the encoder."""
    fig, (left, right) = panels(2, height=4.4, sharey=True, width_ratios=(2.2, 1))
    ks, everything, used = set(), 1, set()

    def point(ax, x, run, k=None, **kwargs):
        mean, low, high = run.accuracy(k)
        error = [[max(mean - low, 0)], [max(high - mean, 0)]]
        ax.errorbar([x], [mean], error, color=study.colours[run.model], elinewidth=0.8, linestyle="", **kwargs)
        return mean

    for i, model in enumerate(study.models):
        beside = 1.05 ** (2 * i - len(study.models) + 1)  # side by side, or bars would hide each other
        if few := study.one("few_shot", model):
            mine = few.shots()
            means = [point(left, int(k) * beside, few, k, marker=".", ms=4) for k in mine]
            left.plot([int(k) * beside for k in mine], means, color=study.colours[model], lw=1.3)
            ks.update(int(k) for k in mine)
        mine = [run for run in study.runs if (run.model, run.upsampling) == (model, "bicubic") and run.method in MARKERS]
        for run in sorted(mine, key=lambda run: list(MARKERS).index(run.method)):
            used.add(run.method)
            style = {"marker": MARKERS[run.method], "ms": 10 if run.method == "zero-shot" else 5}
            total = run.record["labels_used"] / len(run.record["data"]["classes"])
            everything = max(everything, total)
            order = list(MARKERS).index(run.method)
            point(
                left, 0.5 * beside if run.method == "zero-shot" else total * 1.04 ** (3 * i + order - 1.5 * len(study.models)), run, **style
            )
            if model in study.speeds:
                point(right, study.speeds[model] * 1.04 ** (order - 1), run, **style)
    for ax in (left, right):
        chance_line(ax, study.chance)
        ax.set_ylim(0, 1)
    shot_axis(left, [k for k in sorted(ks) if k < 0.75 * everything], everything)
    left.set_ylabel("test accuracy, 95 % interval")
    right.set_xscale("log")
    right.set_xlabel("encoder, images/s")
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    right.minorticks_off()
    low, high = right.get_xlim()
    right.set_xlim(low / 1.5, high * 1.5)
    handles = [Line2D([], [], color=study.colours[m], label=m) for m in study.models]
    handles += [Line2D([], [], color=GREY, linestyle="", marker=MARKERS[m], label=m) for m in MARKERS if m in used]
    handles += [Line2D([], [], color=GREY, linestyle=(0, (2, 2)), lw=0.8, label="chance")]
    left.legend(handles=handles, fontsize=7.5, loc="lower right", ncols=2)
    left.set_title(f"{study.name}: lines are few-shot, text-init for CLIP, linear for others", fontsize=9, parse_math=False)
    right.set_title("with all labels or none", fontsize=9)
    return fig


def figures(study):
    """{file name: Figure} of all that there are results for, and [(file name, what it lacks)] for the rest."""
    drawn, lacking = {}, []

    def plan(name, draw, *args, lacks, found):
        if found:
            drawn[f"{name}.png"] = draw(study, *args)
        else:
            lacking.append((f"{name}.png", lacks))

    mistaken = [run for run in (*study.find("zero_shot"), *study.find("linear_probe")) if len(run.arrays["pairs"])]
    tuned = study.find("finetune", None, "cs") or study.find("finetune", None, "ml")
    plan("summary", draw_summary, lacks="linear_probe.py", found=study.find("linear_probe"))
    plan("few_shot", draw_few_shot, lacks="few_shot.py", found=study.find("few_shot"))
    plan("frozen_and_full", draw_frozen, lacks="finetune.py --freeze", found=study.find("finetune", None, "frozen"))
    plan("prompts", draw_prompts, lacks="prompts.py", found=study.find("prompts"))
    plan("confusions", draw_confusions, lacks="zero_shot.py or linear_probe.py with a mistake", found=mistaken)
    plan("wise_ft", draw_wise, lacks="finetune.py", found=tuned)
    plan("upsampling", draw_upsampling, lacks="upsample.py eval", found=study.find("upsample", None, "eval"))
    for run in study.find("zero_shot") or [None]:
        plan(f"zero_shot-{spelled(run.model) if run else 'MODEL'}", draw_zero_shot, run, lacks="zero_shot.py", found=run)
    for run in study.find("finetune", None, "cs") or [None]:
        model = run and run.model
        plan(f"methods-{spelled(model) if run else 'MODEL'}", draw_methods, model, lacks="finetune.py --method cs", found=run)
    return drawn, lacking


# ---- table and recommendation -----------------------------------------------------------------------------------------


def summarise(study):
    """What the table and the text under it say: {data, environment, rows, advice}."""
    order, rows = ["zero_shot", "prompts", "few_shot", "linear_probe", "frozen", "cs", "ml"], []
    for run in [run for run in study.runs if run.script != "upsample"]:
        words = shlex.split(run.record["command"])
        for flag in {"--out", "--save"} & {*words}:
            del words[words.index(flag) : words.index(flag) + 2]
        for k in [k for k in run.shots() if k in SHOTS] if run.script == "few_shot" else (None,):
            method = f"few-shot, {run.few}" if k else run.method
            row = {"data": study.name, "model": run.model, "method": method, "upsampling": run.upsampling}
            row["labels"] = float(k or run.record["labels_used"] / len(run.record["data"]["classes"]))
            row["test"] = [round(value, 4) for value in run.accuracy(k)]
            row |= {"seconds": round(run.record["seconds"], 1), "command": shlex.join(words)}
            place = order.index(run.variant or run.script), row["labels"], study.models.index(run.model), run.upsampling != "bicubic"
            rows.append((place, row))
    run = (study.find("few_shot") or study.runs)[0].record  # that one knows train and test
    environment = {key: run["environment"][key] for key in ("torch", "torchvision", "device", "precision")}
    about = {"name": study.name, "fingerprint": run["data"]["fingerprint"]}
    about |= {"classes": len(run["data"]["classes"]), "counts": run["data"]["counts"]}
    return {
        "data": about,
        "environment": environment,
        "rows": [row for _, row in sorted(rows, key=lambda r: r[0])],
        "advice": advise(study),
    }


def figure_of(mean, low, high, sign=""):
    return f"{mean:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def tied(study, runs):
    """(best, those whose paired interval with it includes 0, all differences to it).

    The fastest encoder comes first; below a factor of ALIKE speeds are noise, and the more accurate one does.
    """
    best = max(runs, key=lambda run: run.right().mean())
    gaps = {id(run): versus(run, best) for run in runs}
    equal = [run for run in runs if run is best or gaps[id(run)][1] <= 0 <= gaps[id(run)][2]]
    speed = {id(run): study.speeds.get(run.model, 0) for run in equal}
    fast = max(speed.values()) / ALIKE
    return best, sorted(equal, key=lambda run: (-min(speed[id(run)], fast), -gaps[id(run)][0])), gaps


def choice(study, runs, what):
    """Which of these runs to take, in words."""
    best, equal, gaps = tied(study, runs)

    def told(run):
        name = run.model + (f" ({run.variant})" if run.variant else "")
        value = f"{figure_of(*run.accuracy())}, the best" if run is best else figure_of(*gaps[id(run)], "+")
        return f"{name} {value}" + (f", {study.speeds[run.model]:,.0f} images/s" if run.model in study.speeds else "")

    text = f"**{what}: {' or '.join(run.model for run in equal)}.** " + "; ".join(map(told, equal))
    if len(equal) > 1:
        text += "; not told apart" + (", a clearly faster encoder first" if all(run.model in study.speeds for run in equal) else "")
    behind = [told(run) for run in runs if run not in equal]
    return text + (f". Behind: {'; '.join(behind)}." if behind else ".")


def advise(study):
    """Sentences by one rule: an encoder is as good as the best where the wider paired 95 % interval of their difference includes 0."""
    said, probes, zeros = [], study.find("linear_probe"), study.find("zero_shot")
    if zeros:
        said.append(choice(study, zeros, "Without labels"))
    if probes:
        said.append(choice(study, probes, "With a frozen encoder and all labels"))
    enough = []
    for probe in probes:
        if few := study.one("few_shot", probe.model):
            ks = few.shots()
            gaps = {k: versus(few, probe, k) for k in ks}
            k = next((k for k in ks if gaps[k][1] <= 0 <= gaps[k][2] or gaps[k][0] > 0), None)
            found = f"{k} ({few.few}: {figure_of(*gaps[k], '+')})" if k else f"more than {ks[-1]}" if ks else "too few images to tell"
            enough.append(f"{probe.model} {found}")
    if enough:
        said.append(
            f"**Labels a class that come within the interval of the linear probe on all** (mean of the draws): {'; '.join(enough)}."
        )
    tuned = {}  # of each model the method that validation prefers, of equals ml
    for run in (*study.find("finetune", None, "ml"), *study.find("finetune", None, "cs")):
        if run.model not in tuned or run.metrics["val"] > tuned[run.model].metrics["val"]:
            tuned[run.model] = run
    gains = []
    for model, run in tuned.items():
        if probe := study.one("linear_probe", model):
            times = f"{run.record['seconds']:.0f} s instead of {probe.record['seconds']:.0f} s"
            gains.append(f"{model} {figure_of(*versus(run, probe), '+')} by {run.variant}, {times}")
    if tuned:
        said.append(choice(study, list(tuned.values()), "With fine-tuning"))
    elif probes:
        said.append("**Fine-tuning:** not run (`FINETUNE=1`).")
    if gains:
        rule = "the method that validation prefers; some of the labels only validate"
        said.append(f"**Fine-tuning instead of the linear probe** ({rule}): {'; '.join(gains)}.")
    pairs = [(a, study.one(a.script, a.model, a.variant, "SRGAN")) for a in study.runs if a.upsampling == "bicubic" and a.model]
    gaps = {f"{a.model} {a.method}": versus(b, a) for a, b in pairs if b}
    if gaps:
        better, worse = sum(low > 0 for _, low, _ in gaps.values()), sum(high < 0 for *_, high in gaps.values())
        least, most = min(gaps, key=gaps.get), max(gaps, key=gaps.get)
        text = f"**SRGAN instead of bicubic:** of {len(gaps)} comparisons {better} better beyond the interval, {worse} worse; "
        text += f"from {figure_of(*gaps[least], '+')} ({least}) to {figure_of(*gaps[most], '+')} ({most})."
        made = next((r.record["data"]["made"]["seconds"] for r in study.runs if r.upsampling == "SRGAN"), None)
        train = study.one("upsample", None, "train")
        costs = [f"training the generator {train.record['seconds']:.0f} s"] if train else []
        costs += [f"enlarging the pictures {made:.0f} s"] if made else []
        said.append(text + (f" It costs {' and '.join(costs)}." if costs else ""))
    elif probes and not [run for run in study.runs if run.upsampling == "SRGAN"]:
        said.append("**SRGAN:** not run.")
    if probes:
        m = probes[0].metrics
        share = m["near_copies"]
        if share >= COPIES:
            left = [(p.model, p.metrics["test_without_near_copies"]) for p in probes]
            without = ", ".join(f"{model} {value:.3f}" for model, value in left if value is not None)
            text = f"**Warning:** {share:.0%} of the test images are near-copies of training images: how well new objects are told apart"
            said.append(f"{text} is not known." + (f" Without them the probes have {without}." if without else ""))
        else:
            said.append(f"**Near-copies:** {share:.1%} of the test images resemble a training image.")
        total = len(probes[0].right())
        said.append(
            f"All of this rests on one test split, of {total:,} images, by which encoders were chosen: the best looks a little too good."
        )
    return said


def render(summary):
    """The summary as Markdown."""
    d, e = summary["data"], summary["environment"]
    counts = ", ".join(f"{n:,} {split}" for split, n in d["counts"].items())
    lines = [f"{d['name']}: {d['classes']} classes, {counts} images; {e['device']}, {e['precision']}, torch {e['torch']}.", ""]
    heads = ["data", "model", "method", "upsampling", "labels a class", "test accuracy (wider 95 % interval)", "seconds", "command"]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for r in summary["rows"]:
        cells = [r[key] for key in ("data", "model", "method", "upsampling")]
        cells += [f"{r['labels']:.4g}", figure_of(*r["test"]), f"{r['seconds']:,.0f}", f"`{r['command']}`"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {sentence}" for sentence in summary["advice"])]) + "\n"


MARKS = ("<!-- table: made by `make readme` -->", "<!-- end of table -->")


def insert(text, block, file):
    """`text` with `block` between its two marks."""
    if any(text.count(mark) != 1 for mark in MARKS):
        fail(f"--readme {file}: needs the lines {MARKS[0]} and {MARKS[1]} once each")
    before, rest = text.split(MARKS[0])
    return f"{before}{MARKS[0]}\n{block}{MARKS[1]}{rest.split(MARKS[1])[1]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="toy", help="name of the data set in the results (%(default)s)")
    parser.add_argument("--results", default="results", metavar="FOLDER", help="(%(default)s)")
    parser.add_argument("--to", metavar="FOLDER", help="draw into this folder (figures/NAME)")
    parser.add_argument("--table", action="store_true", help="print the table and the recommendation instead")
    parser.add_argument(
        "--readme", metavar="FILE", help="also keep summary.json beside the figures, and put the table between two marks of FILE"
    )
    parser.add_argument("--expect", nargs="*", default=[], metavar="FILE", help="results that there should be")
    args = parser.parse_args()

    name = Path(args.data).absolute().name
    study = Study(name, load(args.results, name))
    if not study.runs and (args.readme or not args.expect):
        fail(f"--data {args.data}: no results in {args.results}/*/{name}/; run make first, or the scripts with --out")
    absent = sorted(file for file in args.expect if not Path(file).exists()) if args.expect else sorted(missing(study))
    if args.readme:  # before the figures are drawn
        try:
            text = Path(args.readme).read_text()
        except (OSError, UnicodeDecodeError) as error:
            fail(f"--readme {args.readme}: {why(error)}")
        insert(text, "", args.readme)
    if args.table:
        print(render(summarise(study)) if study.runs else "", end="")
    else:
        folder = Path(args.to or f"figures/{name}")
        drawn, lacking = figures(study)
        for file, fig in drawn.items():
            with atomic(folder / file) as temporary:
                fig.savefig(temporary, format="png", dpi=100)
        print(f"{name}: {counted(len(study.runs), 'result')}; drew {some([str(folder / file) for file in drawn], 99) or 'nothing'}")
        for file, what in lacking:
            print(f"note: {file} is not drawn: no result of {what}")
    if args.readme:
        summary, readme = summarise(study), Path(args.readme)
        text = insert(text, render(summary), readme)
        for file, content in ((folder / "summary.json", json.dumps(summary, indent=1) + "\n"), (readme, text)):
            with atomic(file) as temporary:
                temporary.write_text(content)
        print(f"wrote {folder / 'summary.json'} and the table in {readme}")
    for file in absent:
        print(f"missing: {file}")
    raise SystemExit(1 if absent else 0)


if __name__ == "__main__":
    main()
