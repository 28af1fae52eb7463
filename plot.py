"""Figures, table and recommendation of the study, from results/ alone: no model is run and no data set is read.

    python plot.py --data toy                # figures/toy/*.png, in 10 s
    python plot.py --data toy --table        # Markdown: each result with its command, and what follows from them

NAME-srgan, the data set that upsample.py made of NAME, is shown beside NAME. Results of other pictures or weights than the
rest are refused; what is missing is named, and the exit code is then 1. It needs results that the scripts wrote with --out.

    right    (S, N) for each test image 1 or 0, in each of the S draws of the labels of few_shot.py; S is 1 elsewhere
"""

import argparse
import math
import os
import re
import shlex
import shutil
import textwrap
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from common import (
    accuracy_interval,
    all_letters,
    atomic,
    counted,
    digest,
    fail,
    few_tested,
    normal_quantile,
    np,
    paired_difference,
    read_json,
    read_result,
    some,
    spelled,
    wilson,
    wrap,
    write_json,
)

# Okabe and Ito's colours, which colour-blind people can tell apart, without yellow and black; six more for those with many models: of the
# twelve the two nearest are 18 apart (CIELAB, simulated after Machado et al.) without green cones, 21 without red ones, 26 with all
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#8B4513", "#4B0082", "#004D40", "#0000FF", "#7766FF", "#99DD88"),
)
GREY = "#777777"
MARKERS = {"zero-shot": "*", "linear probe": "o", "fine-tuned, ml": "s", "fine-tuned, cs": "D"}
STYLES = {"class-mean": ("v", ":"), "linear": ("o", "--"), "tip": ("^", "-."), "text-init": ("s", "-")}
UPSAMPLINGS = ("bicubic", "SRGAN")
SHOTS = ("1", "4", "16")  # labels a class that get a row in the table
FASTER = 1.5  # times as fast: less is not told apart
MARGIN = 0.02  # a loss of accuracy up to which one is as good as the other
COPIES = 0.02  # share of copies from which the numbers come with a warning
UNEQUAL = 3  # times as many test images in one class as in another, from which the mean per class has its say
MANY = 1000  # test images from which a third decimal says something


NEEDS = {  # what figures and table take from a record: metrics, arrays
    "zero_shot": (("top1", "confusions"), ("right", "predicted", "pairs", "pictures")),
    "prompts": (("templates", "ensemble"), ("right",)),
    "few_shot": (("labels", "methods"), ("right",)),
    "linear_probe": (("near_copies", "test_without_near_copies", "confusions"), ("right", "predicted", "pairs", "pictures")),
    "finetune": (("val", "wise", "wise_alpha"), ("right",)),
    "upsample": ((), ()),
}


@dataclass
class Run:
    """A result of a script: the record and the arrays beside it, as `read_result` gives them."""

    record: dict
    arrays: dict
    file: Path
    upsampling: str

    def __post_init__(self):
        args = self.record["args"]
        self.script, self.metrics, self.history = self.record["script"], self.record["metrics"], self.record.get("history", [])
        self.model = self.record["model"]["name"] if self.script != "upsample" else ""
        self.variant = "frozen" if args.get("freeze") else args.get("method", args.get("task", ""))
        self.rate = args.get("lr", 0.0)  # of the encoder, in finetune.py

    @property
    def method(self):
        """As figures call it: without the learning rate."""
        return self.record["table"][0]["method"].partition(", rate")[0].removesuffix(", balanced")

    @property
    def few(self):
        """The method of few_shot.py that stands for a model: captions and labels together where there are captions."""
        return "text-init" if "text-init" in self.metrics else "linear"

    def shots(self, everything=False):
        """The labels a class that few_shot.py tried, as long as that is fewer than all; or the first that is all of them, too."""
        labels, total = self.metrics["labels"], self.record["data"]["counts"]["train"]
        return [k for k in labels if labels[k] < total] + [k for k in labels if labels[k] == total][: int(everything)]

    def place(self, k=None, method=None):
        """Which row of its table: the only one, or that of k labels a class and a method of few_shot.py."""
        if k is None:
            return 0
        rows = [(row["labels"], row["method"].removesuffix(", balanced")) for row in self.record["table"]]
        return rows.index((int(k), f"few-shot, {method or self.few}"))

    def row(self, k=None, method=None):
        """That row, as the script has written it: method, labels, labels_used, accuracy, ci95."""
        return self.record["table"][self.place(k, method)]

    def right(self, k=None, method=None):
        """(S, N) of that row."""
        return self.arrays["right"][self.place(k, method)].astype(float)


def differ(after, before, run, comparisons=1):
    """(mean of after - before, low, high), of (S, N) each on the test images of `run`; `comparisons` intervals hold at once."""
    d = paired_difference(after, before, run.arrays["true"], run.arrays["cluster"], normal_quantile(comparisons))
    return d["mean"], *d["ci95"]


def load(folder, name, leave=()):
    """All runs of NAME and NAME-srgan, sorted, but for the files to `leave` out; fails where they do not belong together."""
    runs, seen = [], {}
    for data, upsampling in zip((name, f"{name}-srgan"), UPSAMPLINGS):
        for file in sorted({*Path(folder).glob(f"*/{data}/[!.]*.json")} - {*leave}):  # not what a kill has left, or a Mac
            record, saved = read_result(file)
            try:
                run = Run(record, saved, file, upsampling)
                keys, arrays = NEEDS[run.script]
                if not ({"command", "table", "seconds"} <= {*record} and {*keys} <= {*run.metrics} and {*arrays} <= {*saved}):
                    raise KeyError
                args, model = record["args"], run.model
                made_of = {f"pictures of {data}": record["data"]["fingerprint"], "seeds": args["seed"], "--groups": args.get("groups")}
                if run.variant != "train":
                    made_of[f"test images of {name}"] = record["data"]["counts"].get("test")
                    made_of["devices or precisions"] = [record["environment"][key] for key in ("device", "precision")]
                if model:
                    made_of[f"weights of {model}"] = record["model"]["sha256"]
                    made_of[f"--fit of {model}"] = args.get("fit")
                    made_of["words for the classes"] = record["data"]["words"]
                    names = [re.sub(r"\.[^.]*$", "", path) for path in run.arrays["index"].tolist()]  # enlarged ones are .png
                    made_of[f"test images of {name}, by their names"] = digest(names)
                    made_of[f"groups or copies of the test images of {data}"] = digest(run.arrays["cluster"].tolist())
                if upsampling == "SRGAN":
                    made_of[f"pictures of {name}"] = record["data"].get("made", {}).get("source")
            except (KeyError, TypeError, AttributeError):
                fail(f"{file}: not a whole result of these scripts; make it anew, or take it out of {folder}")
            for what, value in made_of.items():
                first = seen.setdefault(what, (value, file))
                if first[0] != value:
                    fail(f"{first[1]} and {file}: of different {what}; delete the older one and make it again")
            if (twin := seen.setdefault((run.script, model, run.variant, run.rate, upsampling), file)) != file:
                fail(f"{twin} and {file}: two results of one run; take one out of {folder}")
            runs.append(run)
    return runs


def older(file, stamp):
    """Whether a result is of before the stamp of bench/stamp.py was written; as make sees it, by the times of the files."""
    times = [path.stat().st_mtime_ns for path in (Path(file), Path(stamp)) if path.is_file()]
    return len(times) == 2 and times[0] < times[1]


def name_of(data):
    """What results of --data are called: the last part of a path, without .csv, .zip or .tar; of torchvision:NAME the NAME."""
    return re.sub(r"\.(csv|zip|tar)$", "", Path(data.removeprefix("torchvision:")).absolute().name)


def load_speeds(file):
    """{model: images a second} as bench/speed.py measured them, {} where it has not."""
    if not file.is_file():
        return {}
    found = read_json(file)
    found = found.get("images_per_second") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not all(isinstance(speed, (int, float)) for speed in found.values()):
        fail(f"{file}: not what bench/speed.py writes; delete it and run make again")
    return found


class Study:
    """The runs of a data set, and a colour for each model, the same in each figure."""

    def __init__(self, name, runs, speeds=()):
        self.name, self.runs = name, runs
        self.models = sorted({run.model for run in runs if run.model}, key=lambda m: (not self.find("zero_shot", m), m))
        self.runs = sorted(runs, key=lambda run: self.models.index(run.model) if run.model else -1)
        self.colours = {model: COLOURS[i % len(COLOURS)] for i, model in enumerate(self.models)}
        self.speeds = dict(speeds)
        self.chance = next((1 / len(run.record["data"]["classes"]) for run in runs), 0)

    def find(self, script, model=None, variant=None, upsampling="bicubic"):
        runs = [run for run in self.runs if run.script == script and run.upsampling == upsampling]
        return [run for run in runs if model in (None, run.model) and variant in (None, run.variant)]

    def one(self, *args):
        return next(iter(self.find(*args)), None)

    def tuned(self, model, variants=("ml", "cs"), upsampling="bicubic"):
        """The run of finetune.py that validation prefers among methods and learning rates; of equals ml and the smaller rate."""
        runs = [run for variant in variants for run in self.find("finetune", model, variant, upsampling)]
        return min(runs, key=lambda run: (-run.metrics["val"], variants.index(run.variant), run.rate), default=None)


def missing(study):
    """Files that these results lack to be whole: what one model of a kind has, each should have."""
    kinds, lacks = {}, []
    for run in study.runs:
        if run.model:
            end = run.file.stem.removeprefix(spelled(run.model))
            kinds.setdefault((run.script, run.variant, run.upsampling, end), run.file.parent)
    clips = {run.model for run in study.runs if run.script in ("zero_shot", "prompts") or run.variant == "cs" or "tip" in run.metrics}
    for (script, variant, upsampling, end), folder in kinds.items():
        clip_only = script in ("zero_shot", "prompts") or variant == "cs" or upsampling == "SRGAN"
        files = [folder / f"{spelled(m)}{end}.json" for m in study.models if not clip_only or m in clips]
        lacks += [str(file) for file in files if not file.exists()]
    return lacks


# ---- figures ----------------------------------------------------------------------------------------------------------

FONTS = {
    "font.size": 9,
    "figure.titlesize": 10,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "text.parse_math": False,  # a name may hold a $
}
TICKS = 8  # points; an argument, because ticks are made when the file is written, after FONTS are over
LETTERS = 12  # to an inch, of a title


def panels(count, width=9.0, height=3.6, across=3, **kwargs):
    """A figure as wide as a README, and `count` axes in rows of at most `across`, as even as can be."""
    from matplotlib.figure import Figure  # here, and below, because --help needs none

    down = -(-count // across)
    across = -(-count // down)
    fig = Figure(figsize=(width, height * down), layout="constrained")
    grid = fig.subplots(down, across, squeeze=False, **kwargs).ravel()
    for ax in grid:
        ax.grid(color="#e5e5e5", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=TICKS)
    for ax in grid[count:]:
        ax.remove()
    return fig, grid[:count]


def called(model, width):
    """The name of a model, in as many lines as it takes: broken behind its kind and before its tag, where it has them."""
    return re.sub("([:/]) ", r"\1", wrap(re.sub("([:/])", r"\1 ", model), width))


def key(label, **look):
    """A line or marker for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **look)


CHANCE = {"color": GREY, "linewidth": 0.8, "linestyle": (0, (2, 2)), "label": "chance"}


def finish(fig, title, keys=()):
    """The figure with a title over all of it, in as many lines as it takes, and a legend under the axes, where it covers nothing.

    It grows by the rows of that.
    """
    width, height = fig.get_size_inches()
    if keys:
        longest = max(len(line.get_label()) for line in keys)
        columns = max(1, min(len(keys), int(width / (0.07 * longest + 0.6))))
        rows = -(-len(keys) // columns)
        fig.set_size_inches(width, height + 0.1 + 0.18 * rows)
        fig.legend(handles=keys, loc="outside lower center", ncols=columns)
    fig.suptitle(wrap(title, int(LETTERS * width)))
    return fig


def place_of_all(ks):
    """Where "all labels" stand on the axis of labels a class: one step beyond the last number, however many they are."""
    return 2 * max(ks, default=0.5)


def shot_axis(ax, ks, zero, everything, even=True):
    """Log axis of labels a class `ks`; with `zero`, 0 to the left of 1, and with `everything`, all of them to the right."""
    ticks = {**({0.5: "0"} if zero else {}), **{k: f"{k:,}" for k in ks}, **({place_of_all(ks): "all"} if everything else {})}
    room, after = math.log2(max(ticks) / min(ticks)) / 11, math.inf
    for x in sorted(ticks, reverse=True):  # a number without room keeps its line, and loses its label
        if math.log2(after / x) < room:
            ticks[x] = ""
        else:
            after = x
    ax.set_xscale("log", base=2)
    ax.set_xlim(min(ticks) / 1.4, max(ticks) * 1.4)
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.minorticks_off()
    ax.set_xlabel("labels a class" if even else "labels a class, or all that a class has")


def accuracy_axis(ax, chance):
    """All accuracies, with room for a whole marker at 0 and 1; and that of guessing."""
    ax.set_ylim(-0.03, 1.03)
    ax.axhline(chance, **CHANCE)


def even_shots(runs):
    """Whether each class has as many labels as few_shot.py took."""
    return all(run.metrics["labels"][k] == int(k) * len(run.record["data"]["classes"]) for run in runs for k in run.shots())


def draw_few_shot(study):
    """Test accuracy against labels a class; mean and standard deviation of the draws; zero-shot is the star at 0."""
    runs = study.find("few_shot")
    fig, axes = panels(len(runs), sharex=True, sharey=True)
    fewer = sorted({int(k) for run in runs for k in run.shots()})  # one axis for all panels
    zero, everything = any("zero_shot" in run.metrics for run in runs), any(run.shots() != run.shots(everything=True) for run in runs)
    for ax, run in zip(axes, runs):
        m, colour = run.metrics, study.colours[run.model]
        ks = run.shots(everything=True)
        x = [int(k) for k in run.shots()] + [place_of_all(fewer)] * (len(ks) - len(run.shots()))
        for method in [name for name in STYLES if name in m]:
            marker, line = STYLES[method]
            mean, spread = ([m[method][k][what] or 0 for k in ks] for what in ("mean", "std"))
            ax.errorbar(x, mean, spread, marker=marker, linestyle=line, color=colour, ms=4, lw=1.2, elinewidth=0.8, label=method)
        if "zero_shot" in m:
            low, high = m["zero_shot_ci95"]
            error = [[m["zero_shot"] - low], [high - m["zero_shot"]]]
            ax.errorbar([0.5], [m["zero_shot"]], error, marker="*", ms=11, color=colour, linestyle="", label="zero-shot", elinewidth=0.8)
        accuracy_axis(ax, study.chance)
        shot_axis(ax, fewer, zero, everything, even_shots(runs))
        ax.set_title(called(run.model, 30))
        ax.tick_params(labelbottom=True)
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel("test accuracy")
    used = [(name, *style) for name, style in STYLES.items() if any(name in run.metrics for run in runs)]
    keys = [key(name, color=GREY, marker=marker, linestyle=line, ms=4, lw=1.2) for name, marker, line in used]
    keys += [key("zero-shot (its 95 % interval)", color=GREY, marker="*", ms=9, linestyle="")] if zero else []
    return finish(fig, f"{study.name}: few labels, mean and standard deviation of the draws", [*keys, key(**CHANCE)])


def draw_curves(study, title, lines, keys):
    """Training and validation accuracy against epochs; `lines` are (run, colour, line style)."""
    fig, axes = panels(2, sharey=True)
    for i, (run, colour, line) in enumerate(lines):
        rows = [row for row in run.history if "epoch" in row and row["seed"] == run.history[0]["seed"]]
        epochs, train, val = (np.array([row[what] for row in rows], float) for what in ("epoch", "train", "val"))  # None becomes nan
        axes[0].plot(epochs, train, line, color=colour, lw=1.4)
        axes[1].plot(epochs, val, line, color=colour, lw=1.4)
        low, high = wilson(val[-1], run.record["data"]["counts"]["val"])
        beside = 1.02 + min(0.015, 0.15 / len(lines)) * i
        error = [[val[-1] - low], [high - val[-1]]]
        axes[1].errorbar(epochs[-1:] * beside, val[-1:], error, color=colour, elinewidth=0.8, capsize=2)
    for ax, split in zip(axes, ("training batches, augmented", "validation, 95 % interval at the end")):
        ax.set_title(split)
        ax.set_xlabel("epoch")
    if study.chance > axes[0].get_ylim()[0]:
        for ax in axes:
            ax.axhline(study.chance, **CHANCE)
        keys = [*keys, key(**CHANCE)]
    axes[0].set_ylabel(f"accuracy (chance {study.chance:.3f})")
    return finish(fig, title, keys)


def draw_frozen(study):
    """A linear layer alone from a random start, and all of the encoder from the linear probe."""
    kinds = {"frozen": ("--", "linear layer alone, from a random start"), "ml": ("-", "all of the encoder, from the linear probe")}
    lines = []
    for model in study.models:
        for variant, (line, _) in kinds.items():
            if run := study.tuned(model, (variant,)):
                lines.append((run, study.colours[model], line))
    keys = [key(model, color=study.colours[model]) for model in study.models if model in {run.model for run, *_ in lines}]
    keys += [key(label, color=GREY, linestyle=line) for line, label in kinds.values() if line in {line for *_, line in lines}]
    return draw_curves(study, f"{study.name}: what is trained, and from where", lines, keys)


def draw_methods(study, model):
    """ml and cs on either upsampling."""
    lines, keys = [], []
    for upsampling, colour in zip(UPSAMPLINGS, (study.colours[model], "#000000")):
        for variant, line in (("ml", "--"), ("cs", "-")):
            if run := study.tuned(model, (variant,), upsampling):
                lines.append((run, colour, line))
                keys.append(key(f"{variant.upper()}, {upsampling}", color=colour, linestyle=line))
    return draw_curves(study, f"{study.name}: {model}, fine-tuned", lines, keys)


def draw_prompts(study):
    """Templates ranked by the accuracy on which they were chosen, ± one standard error: the best, the default, the worst."""
    runs = study.find("prompts")
    fig, axes = panels(len(runs), across=2)
    tallest = 0
    for ax, run in zip(axes, runs):
        ranked = sorted(run.metrics["templates"], key=lambda row: -row["top1"])
        places = {row["template"]: i for i, row in enumerate(ranked)}
        default = places.get("a photo of a {}, a type of {type}.", places.get("a photo of a {}."))
        shown = [i for i in range(len(ranked)) if i < 12 or i == default or i >= len(ranked) - 3]
        names = [wrap(f"{i + 1}. {'(default) ' * (i == default)}{ranked[i]['template']}", 38 if len(runs) > 1 else 60) for i in shown]
        lines = np.array([name.count("\n") + 1 for name in names])
        ys = np.cumsum(lines + 0.4) - lines / 2  # as far from each other as their names are high
        for y, i in zip(ys, shown):
            row, chosen = ranked[i], ranked[i]["template"] in run.metrics["ensemble"]
            fill = study.colours[run.model] if chosen else "white"
            ax.errorbar([row["top1"]], [y], xerr=[row["se"]], marker="o", ms=5, color=study.colours[run.model], mfc=fill, elinewidth=1)
        ax.set_yticks(ys, names)
        ax.set_ylim(ys[-1] + lines[-1], 0)
        tallest = max(tallest, ys[-1] + lines[-1])
        split, count = next(iter(run.record["data"]["counts"].items()))
        ax.set_xlabel(f"accuracy on {count:,} {split} images")
        ax.set_title(called(run.model, 34))
    fig.set_figheight(-(-len(runs) // 2) * (0.145 * tallest + 0.7) + 0.3)
    title = f"{study.name}: of {len(ranked)} templates the best, the default, the worst; filled: chosen; chance {study.chance:.3f}"
    return finish(fig, title)


def draw_confusions(study, runs):
    """Up to three most confused pairs of classes, as pictures: one that was mistaken, and one of the class it was taken for."""
    from matplotlib.figure import Figure

    most = min(3, max(len(run.arrays["pairs"]) for run in runs))
    fig = Figure(figsize=(1.2 + 2.6 * max(most, 2), 1), layout="constrained")
    fig.get_layout_engine().set(wspace=0.08)
    tallest = 0
    for row, run in zip(fig.subplots(len(runs), most, squeeze=False), runs):
        a, classes = run.arrays, run.record["data"]["classes"]
        counts = {(c["true"], c["predicted"]): f"{c['count']} of {c['count'] / c['share']:.0f}" for c in run.metrics["confusions"]}
        pictures = a["pictures"].reshape(-1, 2, *a["pictures"].shape[1:])
        for ax in row:
            ax.axis("off")
            ax.set_anchor("N")  # the layout reckons with titles above the whole of a place
        for ax, (mistaken, other), i in zip(row, pictures, a["pairs"][:, 0]):
            names = classes[a["true"][i]], classes[a["predicted"][i]]
            gap = np.full((mistaken.shape[0], max(1, mistaken.shape[1] // 8), 3), 255, np.uint8)
            ax.imshow(np.concatenate([mistaken, gap, other], 1))
            title = wrap(" → ".join(names), 36)
            if "\n" in title:  # a line for each name, or more
                title = f"{wrap(f'{names[0]} →', 36)}\n{wrap(names[1], 36)}"
            title += f"\n{counts[names]}"
            ax.set_title(title)
            tallest = max(tallest, title.count("\n") + 1)
        place = {"transform": row[0].transAxes, "ha": "right", "va": "center"}
        row[0].text(-0.04, 0.5, f"{called(run.model, 16)}\n{run.method}", **place)
    fig.set_figheight(len(runs) * (1.3 + 0.16 * tallest) + 0.3)
    return finish(fig, f"{study.name}: true class → what it was taken for, how often, and a test picture of each")


def draw_calibration(study, runs):
    """Accuracy of test images against their confidence, before (dashed) and after calibration; and where the least sure are refused."""
    fig, axes = panels(len(runs) + 1)
    for ax, run in zip(axes, runs):
        m, colour = run.metrics["calibration"], study.colours[run.model]
        ax.plot([0, 1], [0, 1], color=GREY, lw=0.8)
        for name, line in (("_before", "--"), ("", "-")):
            x, y, _ = np.array(m[f"reliability{name}"]).T
            ax.plot(x, y, line, marker="o", ms=3, lw=1.2, color=colour, mfc="white" if name else colour)
        kept, accuracy = np.array(m["reject"]).T
        axes[-1].plot(kept, accuracy, color=colour, lw=1.2)
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="confidence", title=called(run.model, 30))
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel("test accuracy")
    axes[-1].set(xlim=(-0.03, 1.03), xlabel="share that is kept", title="accuracy without the least confident")
    keys = [key(run.model, color=study.colours[run.model]) for run in runs]
    keys += [key(label, color=GREY, linestyle=line) for label, line in (("before", "--"), ("after calibration", "-"))]
    return finish(fig, f"{study.name}: linear probe, confidence and accuracy of equally many test images a point", keys)


def draw_wise(study):
    """WiSE-FT: validation accuracy of weights between start and fine-tuned; the chosen one is filled."""
    fig, (ax,) = panels(1, width=6.5)
    runs = [study.tuned(model, (variant,)) for model in study.models for variant in ("ml", "cs")]
    runs = [run for run in runs if run and run.metrics["wise"]]
    keys = []
    for i, run in enumerate(runs):
        wise, colour, count = run.metrics["wise"], study.colours[run.model], run.record["data"]["counts"]["val"]
        x, y = np.array([float(a) for a in wise]), np.array(list(wise.values()))
        low, high = np.array([wilson(v, count) for v in y]).T
        place = x + min(0.008, 0.08 / len(runs)) * (i - (len(runs) - 1) / 2)  # side by side, or bars would hide each other
        line, marker = ("-", "D") if run.variant == "cs" else ("--", "s")
        look = {"color": colour, "linestyle": line, "marker": marker, "mfc": "white", "lw": 1.2, "ms": 4}
        ax.errorbar(place, y, [y - low, high - y], label=f"{run.model}, {run.variant}", elinewidth=0.5, **look)
        at = np.argmin(np.abs(x - run.metrics["wise_alpha"]))
        ax.plot(place[at], y[at], marker, color=colour, ms=8, zorder=9)
        keys.append(key(f"{run.model}, {run.variant}", **look))
    ax.set_xlabel("alpha: 0 is the start, 1 the best fine-tuned weights; filled: chosen")
    ax.set_ylabel(f"validation accuracy\n95 % interval; chance {study.chance:.3f}")
    return finish(fig, f"{study.name}: weights between start and fine-tuned", keys)


def speed_ticks(low, high):
    """Round numbers of images a second, as many as their labels have room for."""
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if all(b / a >= (high / low) ** 0.2 for a, b in pairwise(ticks)):
            break
    return ticks


def draw_summary(study):
    """Test accuracy with its interval, against labels a class and, where it was measured, against the speed of the encoder."""
    speeds = {model: study.speeds[model] for model in study.models if study.speeds.get(model)}
    fig, axes = panels(1 + bool(speeds), height=4.2, sharey=True, width_ratios=(2.2, 1)[: 1 + bool(speeds)])
    left, right = axes[0], axes[-1]

    def point(ax, x, entry, **kwargs):
        mean, low, high = entry.accuracy()
        error = [[max(mean - low, 0)], [max(high - mean, 0)]]
        ax.errorbar([x], [mean], error, color=study.colours[entry.model], elinewidth=0.8, linestyle="", **kwargs)
        return mean

    def beside(i, count, most):
        """The i-th of `count` stands a factor off, lest bars hide each other; all of them within `most` octaves."""
        return 2 ** (min(0.14, most / count) * (i - (count - 1) / 2))

    few = study.find("few_shot")
    ks = sorted({int(k) for run in few for k in run.shots()})
    for run in few:
        aside, mine = beside(study.models.index(run.model), len(study.models), 0.6), run.shots()
        means = [point(left, int(k) * aside, shown(study, run.model, k), marker=".", ms=4) for k in mine]
        left.plot([int(k) * aside for k in mine], means, color=study.colours[run.model], lw=1.3)
    named = [run for model in study.models if (run := study.one("zero_shot", model))]
    taught = [[study.one("linear_probe", model), *(study.tuned(model, (v,)) for v in ("ml", "cs"))] for model in study.models]
    taught = [run for runs in taught for run in runs if run]
    points = [(0.5 * beside(i, len(named), 0.6), run) for i, run in enumerate(named)]
    points += [(place_of_all(ks) * beside(i, len(taught), 0.8), run) for i, run in enumerate(taught)]
    slowest, fastest = min(speeds.values(), default=1), max(speeds.values(), default=1)
    margin = max(1.7, (fastest / slowest) ** 0.08)
    low, high = slowest / margin, fastest * margin
    for x, run in points:
        style = {"marker": MARKERS[run.method], "ms": 10 if run.method == "zero-shot" else 5}
        point(left, x, Entry(run), **style)
        if run.model in speeds:
            aside = (high / low) ** (0.02 * (list(MARKERS).index(run.method) - 1))
            point(right, speeds[run.model] * aside, Entry(run), **style)
    for ax in axes:
        accuracy_axis(ax, study.chance)
    shot_axis(left, ks, bool(named), bool(taught), even_shots(few))
    left.set_ylabel("test accuracy")
    left.set_title("lines: few labels, by the methods that the table advises" if ks else "with all labels or none")
    if speeds:
        right.set_xscale("log")
        right.set_xlim(low, high)
        right.set_xticks(ticks := speed_ticks(low, high), [f"{tick:,g}" for tick in ticks])
        right.minorticks_off()
        right.set_xlabel("encoder, images/s")
        right.set_title("with all labels or none")
    used = {run.method for _, run in points}
    keys = [key(model, color=study.colours[model]) for model in study.models]
    keys += [key(method, color=GREY, linestyle="", marker=marker) for method, marker in MARKERS.items() if method in used]
    return finish(fig, f"{study.name}: test accuracy, 95 % interval", [*keys, key(**CHANCE)])


def figures(study):
    """({file name: Figure, or the file of a picture that a script has drawn with --grid}, [(file name, what it lacks)] of the rest)."""
    from matplotlib import rc_context

    drawn, lacking = {}, []

    def plan(name, draw, *args, lacks, found):
        if found:
            with rc_context(FONTS):
                drawn[f"{name}.png"] = draw(study, *args)
        else:
            lacking.append((f"{name}.png", lacks))

    def take(name, run, lacks):
        picture = run and run.file.with_suffix(".png")
        if picture and picture.is_file():
            drawn[f"{name}.png"] = picture
        else:
            lacking.append((f"{name}.png", f"{lacks} --grid {picture or 'FILE'}"))

    mistaken = [run for run in (*study.find("zero_shot"), *study.find("linear_probe")) if len(run.arrays["pairs"])]
    plan("summary", draw_summary, lacks="linear_probe.py", found=study.find("linear_probe"))
    plan("few_shot", draw_few_shot, lacks="few_shot.py", found=study.find("few_shot"))
    plan("frozen_and_full", draw_frozen, lacks="finetune.py --freeze", found=study.find("finetune", None, "frozen"))
    plan("prompts", draw_prompts, lacks="prompts.py", found=study.find("prompts"))
    plan("confusions", draw_confusions, mistaken, lacks="zero_shot.py or linear_probe.py with a mistake", found=mistaken)
    sure = [run for run in study.find("linear_probe") if "calibration" in run.metrics]
    plan("calibration", draw_calibration, sure, lacks="linear_probe.py", found=sure)
    plan("wise_ft", draw_wise, lacks="finetune.py", found=study.tuned(None))
    take("upsampling", study.one("upsample", None, "eval"), "upsample.py eval")
    for run in study.find("zero_shot") or [None]:
        take(f"zero_shot-{spelled(run.model) if run else 'MODEL'}", run, "zero_shot.py")
    for run in study.find("finetune", None, "cs") or [None]:
        model = run and run.model
        plan(f"methods-{spelled(model) if run else 'MODEL'}", draw_methods, model, lacks="finetune.py --method cs", found=run)
    return drawn, lacking


# ---- the rule ---------------------------------------------------------------------------------------------------------


@dataclass
class Entry:
    """What is compared for one encoder at one number of labels: a run, and of few_shot.py a number of labels and a method.

    `row` is that of the table which the script has written, `right` (S, N) belongs to it.
    """

    run: Run
    k: str = None
    few: str = None

    def __post_init__(self):
        self.model, self.row, self.right = self.run.model, self.run.row(self.k, self.few), self.run.right(self.k, self.few)

    def accuracy(self):
        """(test accuracy, low, high) over images, and over draws of the labels where there are some."""
        return self.row["accuracy"], *self.row["ci95"]


def unbeaten(first, rivals):
    """`first`, or the most accurate of its rivals that beat it beyond the interval (all of them at once, on the test images)."""
    beat = [r for r in rivals if differ(r.right, first.right, first.run, len(rivals))[1] > 0]
    return max(beat, key=lambda r: r.right.mean(), default=first)


def shown(study, model, k):
    """What stands for a model with k labels a class, "all" of them, or None: text-init where there are captions, else linear; and
    the linear probe with all; but never one that another method of the same encoder beats beyond the interval."""
    few, probe = study.one("few_shot", model), study.one("linear_probe", model)
    if k == "all":
        whole = few.shots(everything=True)[len(few.shots()) :] if few else []
        return probe and unbeaten(Entry(probe), [Entry(few, key, m) for key in whole for m in few.metrics["methods"]])
    if few is None or k not in few.shots():
        return None
    return unbeaten(Entry(few, k, few.few), [Entry(few, k, m) for m in few.metrics["methods"] if m != few.few])


def entries(study, budget):
    """One Entry for each encoder that has a result with that many labels: "0", numbers a class, "all", "fine-tuned"."""
    if budget == "0":
        return [Entry(run) for run in study.find("zero_shot")]
    if budget == "fine-tuned":
        return [Entry(run) for run in map(study.tuned, study.models) if run]
    return [entry for model in study.models if (entry := shown(study, model, budget))]


@dataclass
class Verdict:
    """Where an encoder stands beside the best: "best", "as good", "perhaps", "worse"; or "guessing"."""

    entry: Entry
    word: str
    gap: tuple  # (mean, low, high) of its accuracy minus the best one's; all gaps of any two encoders hold at once


def judge(rivals, margin):
    """Verdicts, the best first. As good is non-inferior: the lower bound of the gap lies above -margin. Worse: the upper lies below 0."""
    order = sorted(rivals, key=lambda e: -e.right.mean())
    best, verdicts = order[0], []
    for entry in order:
        true, classes = entry.run.arrays["true"], len(entry.run.record["data"]["classes"])
        gap = differ(entry.right, best.right, best.run, max(1, math.comb(len(order), 2)))
        if entry.accuracy()[1] <= max(1 / classes, np.bincount(true).max() / len(true)):
            word = "guessing"
        elif entry is best:
            word = "best"
        else:
            word = "as good" if gap[1] > -margin else "worse" if gap[2] < 0 else "perhaps"
        verdicts.append(Verdict(entry, word, gap))
    return verdicts


def recommended(verdicts, speeds):
    """The Verdict to take: among the best and those as good the most accurate of the clearly fastest; None where all are guessing."""
    good = [v for v in verdicts if v.word in ("best", "as good")]
    if not good or good[0].word != "best":
        return None
    if not {v.entry.model for v in good} <= {*speeds}:  # not measured: the best is taken
        return good[0]
    fast = max(speeds[v.entry.model] for v in good) / FASTER
    return next(v for v in good if speeds[v.entry.model] >= fast)


def enough(few, margin):
    """How few labels a class are as good as all with the same method of few_shot.py: [(k, gap, word)], from the most to the fewest.

    From the top down and only as long as the one before held, so that no k is found by luck. Words: "enough", "too few", "cannot
    be told", and "" below one that did not hold.
    """
    key, rows, held = few.shots(everything=True)[-1], [], True
    for k in reversed(few.shots()):
        gap = differ(few.right(k), few.right(key), few)
        word = "enough" if gap[1] > -margin else "too few" if gap[2] < 0 else "cannot be told"
        rows.append((k, gap, word if held else ""))
        held = held and word == "enough"
    return rows


# ---- table and recommendation -----------------------------------------------------------------------------------------


def summarise(study, margin=MARGIN):
    """What the table and the text over it say: {data, environment, rows, advice, reasons}."""
    order, rows = ["zero_shot", "prompts", "few_shot", "linear_probe", "frozen", "cs", "ml"], []
    for run in [run for run in study.runs if run.script != "upsample"]:
        words = shlex.split(run.record["command"])
        for flag in {"--out", "--save", "--grid"} & {*words}:
            del words[words.index(flag) : words.index(flag) + 2]
        for k in [k for k in run.shots() if k in SHOTS] if run.script == "few_shot" else (None,):
            told = (shown(study, run.model, k) if k else Entry(run)).row
            row = {"data": study.name, "model": run.model, "upsampling": run.upsampling, **told, "labels": float(told["labels"])}
            row["test"] = [round(value, 4) for value in (row.pop("accuracy"), *row.pop("ci95"))]
            row |= {"seconds": round(run.record["seconds"], 1), "command": shlex.join(words)}
            place = order.index(run.variant or run.script), row["labels"], study.models.index(run.model), run.upsampling != "bicubic"
            rows.append((place, row))
    run = (study.find("few_shot") or study.runs)[0]  # that one knows train and test
    environment = {key: run.record["environment"][key] for key in ("torch", "torchvision", "device", "precision")}
    about = {"name": study.name, "fingerprint": run.record["data"]["fingerprint"]}
    about |= {"classes": len(run.record["data"]["classes"]), "counts": run.record["data"]["counts"]}
    advice, reasons = advise(study, margin)
    return {
        "data": about,
        "environment": environment,
        "digits": digits_of(run),
        "rows": [row for _, row in sorted(rows, key=lambda r: r[0])],
        "advice": advice,
        "reasons": reasons,
    }


def digits_of(run):
    """Decimals of an accuracy that the test images of a run can tell."""
    return 3 if len(run.arrays.get("true", ())) >= MANY else 2


def figure_of(values, digits, sign=""):
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in values)
    return f"{mean} ({low} to {high})"


PLAIN = {
    "zero-shot": "zero-shot, from the names of the classes alone",
    "few-shot, text-init": "text-init, from names and labels",
    "few-shot, linear": "linear, from labels alone",
    "few-shot, tip": "tip, from names and labels",
    "few-shot, class-mean": "class-mean, from labels alone",
    "linear probe": "linear probe, from labels alone",
}
BUDGETS = {
    "0": "No labels",
    **{k: f"{counted(int(k), 'label')} a class" for k in SHOTS},
    "all": "All labels, encoder unchanged",
    "fine-tuned": "All labels, encoder fine-tuned",
}


def plainly(method):
    """A method for people: few-shot methods by what they learn from, and no learning rates."""
    return PLAIN.get(method.removesuffix(", balanced")) or ("fine-tuned" if method.startswith("fine-tuned") else method)


def advise(study, margin=MARGIN):
    """(sentences, rows of reasons): which encoder at each number of labels, how many labels, and what fine-tuning and SRGAN add."""
    said, reasons = [], []
    tested = next((run for run in study.runs if run.model), None)
    total, digits = (len(tested.arrays["true"]), digits_of(tested)) if tested else (0, 2)
    for budget, title in BUDGETS.items():
        if not (rivals := entries(study, budget)):
            continue
        verdicts = judge(rivals, margin)
        pick = recommended(verdicts, study.speeds)
        said.append(sentence(title, verdicts, pick, study.speeds, margin, digits, total))
        for v in verdicts:
            speed = study.speeds.get(v.entry.model)
            gap = "" if v is verdicts[0] else figure_of(v.gap, 3, "+")
            word = {"perhaps": "cannot be told", "guessing": "not shown to beat guessing"}.get(v.word, v.word)
            test = figure_of(v.entry.accuracy(), digits)
            reasons.append([title, v.entry.model, v.entry.row["method"], test, gap, word + ("; take it" if v is pick else ""), speed])
    said += say_per_class(study, digits)
    said += [*say_labels(study, margin, digits), *say_tuning(study, margin, digits), *say_upsampling(study, digits)]
    return [*said, *say_warnings(study, total)], reasons


def sentence(title, verdicts, pick, speeds, margin, digits, total):
    """One budget in words: what to take, what is as good, what cannot be told, what is worse."""
    if pick is None:
        return f"**{title}: none.** No encoder is shown to do better than guessing."
    entry, best = pick.entry, verdicts[0].entry
    plain = plainly(entry.row["method"])
    text = f"**{title}: take {entry.model}** ({plain}). It names {figure_of(entry.accuracy(), digits)} of the test images right."
    if entry is not best:
        text += f" {best.model} names {best.right.mean():.{digits}f}, but {entry.model} is as good to within {margin:g}"
        text += f" and {speeds[entry.model] / speeds[best.model]:.1f} times as fast."
    rest = [v for v in verdicts if v is not pick]
    names = {word: [v.entry.model for v in rest if v.word == word] for word in ("as good", "perhaps", "worse", "guessing")}
    if names["as good"]:
        text += f" As good: {some(names['as good'])}."
    if names["perhaps"]:
        text += f" {some(names['perhaps'])} may be as good: {total:,} test images cannot tell."
    if names["worse"]:
        text += f" Worse: {some(names['worse'])}."
    if title == BUDGETS["0"] and len(speeds) > len(verdicts):
        text += " Encoders that were not trained with captions need labels."
    if names["guessing"]:
        text += f" Not shown to be better than guessing: {some(names['guessing'])}."
    return text


def say_per_class(study, digits):
    """Which encoder with all labels, or none, the mean over classes prefers, where classes have very unequally many test images."""
    rivals = sorted(entries(study, "all") or entries(study, "0"), key=lambda e: e.model)
    known = rivals[0].run.arrays if rivals else {"true": [0]}
    true, sizes = known["true"], np.unique(known["true"], return_counts=True)[1]
    if sizes.max() <= UNEQUAL * sizes.min():
        return []

    def per_class(values, z=None):  # (mean, low, high)
        each = np.bincount(true, values.mean(0))[np.unique(true)] / sizes
        return each.mean(), *accuracy_interval(values, true, known["cluster"], z, per_class=True)

    best, z = max(rivals, key=lambda e: per_class(e.right)[0]), normal_quantile(max(1, math.comb(len(rivals), 2)))
    gaps = {e.model: 2 * per_class((1 + e.right - best.right) / 2, z)[2] - 1 for e in rivals if e is not best}  # upper ends
    text = f"**If classes count alike** (they have {sizes.min():,} to {sizes.max():,} test images), of {plainly(best.row['method'])}: "
    text += f"{best.model}, mean per class {figure_of(per_class(best.right), digits)}."
    for word, names in (("Cannot be told from it", [m for m in gaps if gaps[m] >= 0]), ("Worse", [m for m in gaps if gaps[m] < 0])):
        text += f" {word}: {some(names)}." if names else ""
    return [text]


def say_labels(study, margin, digits):
    """How few labels are as good as all, for each encoder that has results of few_shot.py."""
    parts = []
    for few in study.find("few_shot"):
        rows = enough(few, margin) if len(few.shots(everything=True)) > len(few.shots()) > 0 else []
        held = [k for k, _, word in rows if word == "enough"]
        text = f"{few.model} {held[-1] if held else 'all'}" if rows else ""
        for k, gap, word in rows:
            told = {"too few": "lose accuracy", "cannot be told": "seem to lose accuracy, which so few test images cannot show"}.get(word)
            if word == "cannot be told" and gap[0] > -margin:
                told = "may do, which so few test images cannot show"
            text += f" ({k} {told}: {figure_of(gap, digits, '+')} against all)" if told else ""
        parts += [text] if text else []
    return [f"**How many labels a class** (to lose less than {margin:g} against all of them): {'; '.join(parts)}."] if parts else []


def say_tuning(study, margin, digits):
    """What fine-tuning adds to the frozen encoder, and what it costs, with all that was tried and needed."""
    pairs = [(run, entry) for model in study.models if (run := study.tuned(model)) and (entry := shown(study, model, "all"))]
    if not pairs:
        return ["**Fine-tuning:** not run (`FINETUNE=1`)."] if study.find("linear_probe") and not study.find("finetune") else []
    parts = []
    for run, frozen in pairs:
        gain = differ(run.right(), frozen.right, run, len(pairs))
        probe = study.one("linear_probe", run.model).record["seconds"]
        tried = [r for variant in ("ml", "cs") for r in study.find("finetune", run.model, variant)]
        spent = probe + sum(r.record["seconds"] for r in tried)
        word = "worth it" if gain[1] > 0 else "not worth it" if gain[2] < margin else "cannot be told"
        parts.append(f"{run.model}: {word}, {figure_of(gain, digits, '+')}, {spent:,.0f} s instead of {probe:,.0f} s")
    return [f"**Fine-tuning, against the encoder unchanged** (time with all settings tried): {'; '.join(parts)}."]


def say_upsampling(study, digits):
    """Whether SRGAN helps, over all methods that have both."""
    plain = [run for run in study.runs if run.upsampling == "bicubic" and run.model and not run.rate]
    pairs = [(a, study.one(a.script, a.model, a.variant, "SRGAN")) for a in plain]
    pairs += [(study.tuned(m, (v,)), study.tuned(m, (v,), "SRGAN")) for m in study.models for v in ("ml", "cs")]
    pairs = [(a, b) for a, b in pairs if a and b]
    gaps = {f"{a.model} {a.method}": differ(b.right(), a.right(), a, len(pairs)) for a, b in pairs}
    if not gaps:
        how, tried = "" if study.find("finetune") else " (`FINETUNE=1`)", any(run.upsampling == "SRGAN" for run in study.runs)
        return [f"**SRGAN:** not run{how}."] if study.find("linear_probe") and not tried else []
    better, worse = sum(low > 0 for _, low, _ in gaps.values()), sum(high < 0 for *_, high in gaps.values())
    least, most = min(gaps, key=gaps.get), max(gaps, key=gaps.get)
    word = "helps here" if better > worse else "does not help here" if not better else "helps some and harms others"
    text = f"**Enlarging by a trained network (SRGAN) instead of plainly (bicubic) {word}:** of {counted(len(gaps), 'comparison')} {better}"
    text += f" clearly better and {worse} clearly worse; accuracy changes from {figure_of(gaps[least], digits, '+')} ({least})"
    text += f" to {figure_of(gaps[most], digits, '+')} ({most})."
    made = next((r.record["data"]["made"]["seconds"] for r in study.runs if r.upsampling == "SRGAN"), None)
    train = study.one("upsample", None, "train")
    costs = [f"training the network {train.record['seconds']:.0f} s"] if train else []
    costs += [f"enlarging the pictures {made:.0f} s"] if made else []
    return [text + (f" It costs {' and '.join(costs)}." if costs else "")]


def say_warnings(study, total):
    """What the numbers rest on, and what they do not say."""
    said, probes = [], study.find("linear_probe")
    if probes and probes[0].metrics["near_copies"] >= COPIES:
        left = [(p.model, p.metrics["test_without_near_copies"]) for p in probes]
        without = ", ".join(f"{model} {value:.3f}" for model, value in left if value is not None)
        text = f"**Warning:** {probes[0].metrics['near_copies']:.0%} of the test images are copies of training images, named in "
        text += f"{probes[0].file.with_name(probes[0].file.stem + '-pairs.csv')}; new pictures will be named right less often."
        said.append(text + (f" Without the copies the probes have {without}." if without else ""))
    run = next((run for run in study.runs if run.model), None)
    if run and (few := few_tested(run.arrays["true"], run.record["data"]["classes"])):
        said.append(f"**Warning:** {counted(len(few), 'class')} judged on one or two test images: {some(few)}.")
    fits = {run.model: run.record["args"].get("fit") for run in study.runs if run.model}  # of a model all runs have the same
    ways = {way: [model for model, fit in fits.items() if fit == way] for way in fits.values()}
    if len(ways) > 1:
        told = "; ".join(f"{f'--fit {way}' if way else 'as each has it'}: {some(models)}" for way, models in ways.items())
        said.append(f"**Warning:** these results are not of one way to make pictures square, and so compare more than encoders ({told}).")
    if total:
        picked = ", which also picked the best: its accuracy is slightly flattered" if len(study.runs) > 1 else ""
        said.append(f"All of this rests on {total:,} test images{picked}.")
    return said


COLUMNS = {  # of the table of all results: heading, and the text of a row of `summarise`
    "data": lambda row, digits: row["data"],
    "encoder": lambda row, digits: row["model"],
    "method": lambda row, digits: row["method"],
    "upsampling": lambda row, digits: row["upsampling"],
    "labels a class": lambda row, digits: f"{row['labels']:.4g}",
    "test accuracy (95 % interval)": lambda row, digits: figure_of(row["test"], digits),
    "seconds of the run": lambda row, digits: f"{row['seconds']:,.0f}",
    "command": lambda row, digits: f"`{row['command']}`",
}
CAPTIONS = {  # of each figure, and what is in the commands of the table that made what it shows
    "summary": (
        "Test accuracy with its 95 % interval, against labels a class and against the speed of the encoder.",
        r"(zero_shot|few_shot|linear_probe)\.py|--lr",
    ),
    "few_shot": ("Few labels: mean ± standard deviation of the draws; the star is zero-shot with its interval.", "few_shot.py"),
    "frozen_and_full": (
        "Frozen against full training: dashed a linear layer alone, from random weights; solid all of the encoder, from the head of"
        " the linear probe. Training accuracy is that of augmented batches while they are learnt from.",
        "--freeze",
    ),
    "prompts": ("Prompts (templates of captions), ranked on the images that chose them, ± one standard error.", "prompts.py"),
    "confusions": (
        "The most confused classes: a mistaken picture, and one of the class it was taken for.",
        r"(zero_shot|linear_probe)\.py",
    ),
    "calibration": (
        "Calibration: how often images named with a confidence are named right, and what is left where the least confident are refused.",
        "linear_probe.py",
    ),
    "wise_ft": ("WiSE-FT: weights between the start and the fine-tuned ones, on validation; what it picks is filled.", "--lr"),
    "upsampling": ("Test pictures reduced 4 times, restored, and as they were.", "upsample.py eval"),
    "zero_shot": ("Zero-shot: random test pictures, `predicted (true)`.", "zero_shot.py"),
    "methods": ("Fine-tuning a linear layer (ML) and towards captions (CS), on pictures enlarged in either way.", "--method"),
}
LEGEND = """\
*As good* is shown, never assumed: the lower end of the interval of the gap lies above a loss of `--margin`. *Worse*: the upper
end lies below zero. Otherwise the test images cannot tell. All gaps hold at once, and of encoders that are as good the clearly
faster one is taken; `docs/methods.md` says how."""
SECONDS = """\
Labels a class include those of images that validation chose by. Few-shot rows are means over several draws of the labels;
fine-tuned rows are of one seed. The seconds are single timings of the run itself, without those that starting Python takes; where
an earlier run had decoded the images and computed the features, they came from the cache."""
WRITTEN = "*`plot.py` writes this page from `results/`: what is changed by hand is lost.*"


def figure_lines(path, summary):
    """A figure in Markdown: the picture, its caption, and a command that makes what it shows."""
    name, _, model = Path(path).stem.partition("-")
    caption, piece = CAPTIONS[name]
    data, rows = summary["data"]["name"], [row for row in summary["rows"] if model in ("", spelled(row["model"]))]
    rows = [row for row in rows if row["upsampling"] == "bicubic" or name == "methods"]
    commands = [row["command"] for row in rows if re.search(piece, row["command"])]
    if name == "upsampling":  # measures pictures, so it has no row
        commands = [f"python upsample.py eval --data {data} --weights weights/srgan-{data}.safetensors"]
    others = len({*commands}) - 1
    made = f"`{commands[0]}`" + (f" and {counted(others, 'other command')} of the table" if others else "")
    return [f"![{caption.split(':')[0].rstrip('.')}{model and f', {model}'}]({path})", "", f"*{caption}* Results of {made}.", ""]


def render(summary):
    """The summary as a page of Markdown: advice, its reasons, all results, and the figures that were drawn."""
    d, e = summary["data"], summary["environment"]
    counts = ", ".join(f"{n:,} {split}" for split, n in d["counts"].items())
    lines = [f"# Which encoder for {d['name']}?", "", *([WRITTEN, ""] if "figures" in summary else [])]
    lines += [f"{d['name']}: {d['classes']} classes, {counts} images; {e['device']}, {e['precision']}, torch {e['torch']}.", ""]
    lines += ["## Advice", "", *(f"- {sentence}" for sentence in summary["advice"]), "", "## Reasons", ""]
    heads = ["labels", "encoder", "method", "test accuracy (95 % interval)", "gap to the best (95 % interval)", "so it is", "images/s"]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for *cells, speed in summary["reasons"]:
        lines.append(f"| {' | '.join([*cells, f'{speed:,.0f}' if speed else ''])} |")
    lines += ["", LEGEND, "", "## All results", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(cell(row, summary['digits']) for cell in COLUMNS.values())} |" for row in summary["rows"]]
    lines += ["", SECONDS, ""]
    if paths := summary.get("figures"):
        lines += ["## Figures", "", f"All are drawn by `python plot.py --data {d['name']}` from the results of the commands above.", ""]
        lines += [line for path in paths for line in figure_lines(path, summary)]
    return "\n".join(lines[:-1]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="toy", help="name of the data set in the results (%(default)s)")
    parser.add_argument("--results", default="results", metavar="FOLDER", help="(%(default)s)")
    parser.add_argument("--to", metavar="FOLDER", help="draw into this folder (figures/NAME)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--table", action="store_true", help="print the table and the recommendation instead")
    kind.add_argument("--readme", metavar="FILE", help="also write table and figures as this page, and summary.json beside the figures")
    parser.add_argument("--margin", type=float, default=MARGIN, help="loss of accuracy up to which one is as good as another (%(default)s)")
    parser.add_argument("--expect", nargs="*", default=[], metavar="FILE", help="results that there should be")
    parser.add_argument("--stamp", metavar="FILE", help="what is older of --expect counts as missing: its run has failed")
    args = parser.parse_args()
    if not 0 < args.margin < 1:
        parser.error(f"--margin {args.margin:g}: must lie between 0 and 1")

    name = name_of(args.data)
    stale = [Path(file) for file in args.expect if args.stamp and older(file, args.stamp)]
    study = Study(name, load(args.results, name, stale), load_speeds(Path(args.results) / f"{name}.speed.json"))
    if not study.runs and (args.readme or not args.expect):
        fail(f"--data {args.data}: no results in {args.results}/*/{name}/; run make first, or the scripts with --out")
    absent = dict.fromkeys([f for f in args.expect if not Path(f).exists()] if args.expect else missing(study), "")
    absent |= {str(file): ", as it must be since the last change: its run has failed" for file in stale}
    page = args.readme and Path(args.readme)
    if page and page.is_file() and WRITTEN not in page.read_text(encoding="utf-8", errors="replace"):  # before the figures are drawn
        fail(f"--readme {page}: is there, and plot.py did not write it; name another file")
    if args.table:
        print(render(summarise(study, args.margin)) if study.runs else "", end="")
    else:
        folder = Path(args.to or f"figures/{name}")
        with all_letters():
            drawn, lacking = figures(study)
            for file, picture in drawn.items():
                with atomic(folder / file) as temporary:
                    shutil.copyfile(picture, temporary) if isinstance(picture, Path) else picture.savefig(temporary, format="png", dpi=100)
        print(f"{name}: {counted(len(study.runs), 'result')}; drew {some([str(folder / file) for file in drawn], 99) or 'nothing'}")
        for file, what in lacking:
            print(f"note: {file} is not drawn: no result of {what}")
        for line in advise(study, args.margin)[0] if study.runs and not page else ():
            print(textwrap.fill(line.replace("**", ""), 120, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False))
        if page:
            paths = [Path(os.path.relpath(folder / file, page.parent)).as_posix() for file in drawn]
            summary = {**summarise(study, args.margin), "figures": paths}
            write_json(folder / "summary.json", summary)
            with atomic(page) as temporary:
                temporary.write_text(render(summary), encoding="utf-8")
            print(f"wrote {folder / 'summary.json'} and {page}")
    for file, reason in sorted(absent.items()):
        print(f"missing: {file}{reason}")
    raise SystemExit(1 if absent else 0)


if __name__ == "__main__":
    main()
