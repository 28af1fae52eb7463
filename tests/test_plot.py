"""plot.py on results whose numbers are known."""

import json
import math
import os
import re
import shutil

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

import plot
from common import FORMAT, accuracy_interval, seal

CLASSES = ["ash", "birch", "cedar", "elm"]
N = 160  # test images, 40 a class, which come class by class


def write(folder, script, name, metrics, model="m-clip", wrong=(0, 159), data="woods", history=None, args=None, arrays=None, over=()):
    """A record as `report` makes it; `wrong` are the test images that were named wrong, `arrays` those of few_shot.py."""
    file = folder / script / data / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    made = {"made": {"source": "f1", "seconds": 7.0}} if data.endswith("srgan") else {}
    used = 0 if script == "zero_shot" else 80
    record = {
        "format": FORMAT,
        "script": script,
        "command": f"python {script}.py --data {data} --model {model} --save head.safetensors --out {file}",
        "args": {"seed": 0, **(args or {})},
        "data": {
            "name": data,
            "fingerprint": "f2" if made else "f1",
            "classes": CLASSES,
            "words": CLASSES,
            "counts": {"train": 80, "val": 20, "test": N},
            **made,
        },
        "model": {"name": model, "sha256": f"sha of {model}"},
        "labels_used": used,
        "metrics": metrics,
        "history": history or [],
        "environment": {"torch": "2", "torchvision": "0", "device": "cpu", "precision": "float32"},
        "seconds": 12.3,
        **dict(over),
    }
    true = np.arange(N) // 40
    predicted = true.copy()
    predicted[list(wrong)] = (true[list(wrong)] + 1) % 4
    pictures = np.zeros((4, 8, 8, 3), np.uint8)
    pairs = np.array([[wrong[0], 40], [wrong[-1], 80]])
    if "confusions" in metrics:  # and before them one without pictures, because no test image is of that class
        told = [{"true": CLASSES[true[i]], "predicted": CLASSES[predicted[i]], "count": 8, "share": 0.2} for i, _ in pairs]
        metrics["confusions"] = [{"true": "elm", "predicted": "yew", "count": 20, "share": 0.5}, *told]
    shown = {"pairs": pairs, "pictures": pictures}
    index = [f"{CLASSES[c]}/{i}.{'png' if made else 'jpg'}" for i, c in enumerate(true)]
    right = (predicted == true)[None, None]
    tuned = f"fine-tuned, {args.get('method')}, rate {args.get('lr', 0):g}" if args else ""
    method = {"zero_shot": "zero-shot", "prompts": "chosen prompts", "linear_probe": "linear probe", "finetune": tuned}.get(script, "")
    rows = [{"method": "linear layer, random start" if args and args.get("freeze") else method, "labels": used / 4, "labels_used": used}]
    if script == "few_shot":  # (K, M, S, N)
        right = arrays["right"].reshape(-1, *arrays["right"].shape[2:])
        rows = [(int(k), images, m) for k, images in metrics["labels"].items() for m in metrics["methods"]]
        rows = [{"method": f"few-shot, {m}", "labels": k, "labels_used": images} for k, images, m in rows]
    for row, values in zip(rows, right):
        row |= judged(values, true)
    record.setdefault("table", rows if script != "upsample" else [])
    known = {"index": index, "true": true, "cluster": np.arange(N), "predicted": predicted, "right": right.astype(np.uint8)}
    np.savez(file.with_suffix(".npz"), **known, **shown)
    Image.new("RGB", (600, 400)).save(file.with_suffix(".png"))  # as --grid draws it
    file.write_text(json.dumps(seal(record, file)))
    return file


def changed(file, old, new):
    """Let the record say something else, as if it had been written so."""
    text = file.read_text()
    assert old in text
    file.write_text(json.dumps(seal(json.loads(text.replace(old, new)), file)))


def judged(right, true):
    return {"accuracy": float(right.mean()), "ci95": accuracy_interval(right, true)}


def change(run, right, k=None, method=None):
    """As if the images that a row of the run's table names right were others."""
    run.arrays["right"][run.place(k, method)] = right
    run.row(k, method).update(judged(run.right(k, method), run.arrays["true"]))


SURE = {  # calibration of a linear probe
    "reliability_before": [[0.7, 0.3, 80], [0.95, 0.7, 80]],
    "reliability": [[0.4, 0.3, 80], [0.6, 0.7, 80]],
    "reject": [[0.5, 0.7], [1, 0.5]],
}
FINE = {  # of three encoders, the images that a linear probe names wrong, and images a second
    "m-clip": (range(0, 160, 2), 100.0),  # 80 wrong
    "m-fast": ([*range(12), *range(100, 116)], 900.0),  # 28 wrong, 16 of them others than those of the best
    "m-best": ([*range(12), *range(140, 152)], 300.0),  # 24 wrong
}


@pytest.fixture
def woods(tmp_path):
    """results/ of a study of one CLIP and two others, whole."""
    folder = tmp_path / "results"
    score = {"top1": 0.5, "top1_ci95": [0.4, 0.6], "confusions": []}
    for data in ("woods", "woods-srgan"):
        write(folder, "zero_shot", "m-clip", score, wrong=range(0, 160, 2), data=data)
    templates = [{"template": f"template {i} of a {{}}.", "top1": 0.5 - i / 100, "top5": 1.0, "se": 0.02} for i in range(30)]
    write(folder, "prompts", "m-clip", {"templates": templates, "ensemble": [templates[0]["template"]]}, wrong=range(0, 160, 2))
    (folder / "woods.speed.json").write_text(json.dumps({"images_per_second": {model: speed for model, (_, speed) in FINE.items()}}))
    for model, (wrong, _) in FINE.items():
        probe = {"top1": 1 - len(wrong) / N, "near_copies": 0.3, "test_without_near_copies": 0.5, "confusions": []}
        write(folder, "linear_probe", model, probe | {"calibration": SURE}, model, wrong)
        methods = ["class-mean", "linear", *(["tip", "text-init"] if model == "m-clip" else [])]
        table = {m: {k: {"mean": 0.6, "std": 0.02} for k in ("1", "4", "32")} for m in methods}
        right = np.zeros((3, len(methods), 2, N), np.uint8)
        right[0, :, :, ::3] = 1  # with 1 label every third image, with 4 all but one of those of the probe
        right[1:, :, :, [i for i in range(N) if i not in wrong]] = 1
        right[1, :, :, 61] = 0
        zero = {"zero_shot": 0.5, "zero_shot_ci95": [0.4, 0.6]} if model == "m-clip" else {}
        few = {"labels": {"1": 4, "4": 16, "32": 80}, "methods": methods, **zero, **table}
        write(folder, "few_shot", model, few, model, arrays={"right": right})
        for variant in ("ml", "frozen", *(("cs",) if model == "m-clip" else ())):
            rows = [{"seed": 0, "epoch": e / 2, "train": e and 0.5 + e / 20, "val": 0.5 + e / 20} for e in range(5)]
            rows[0]["train"] = None
            m = {"top1": 0.9, "val": 0.7, "wise": {"0.0": 0.5, "0.5": 0.6, "1.0": 0.7} if variant != "frozen" else None, "wise_alpha": 1.0}
            args = {"method": variant.replace("frozen", "ml"), "freeze": variant == "frozen", "lr": 1e-5}
            for data in ("woods", "woods-srgan") if model == "m-clip" and variant != "frozen" else ("woods",):
                write(folder, "finetune", f"{model}-{variant}", m, model, range(0, 160, 10), data, rows, args)
        # a larger rate, which validation does not prefer
        worse = {"top1": 0.95, "val": 0.6, "wise": {"0.0": 0.5, "1.0": 0.6}, "wise_alpha": 1.0}
        args = {"method": "ml", "freeze": False, "lr": 1e-4}
        write(folder, "finetune", f"{model}-ml-1e-4", worse, model, [0, 159], "woods", rows, args)
    psnr = {"psnr": {name: {"mean": 20.0, "sd": 1.0} for name in ("bicubic", "srgan")}}
    write(folder, "upsample", "eval", psnr, "srgan", args={"task": "eval"})
    return folder


def study(folder):
    return plot.Study("woods", plot.load(folder, "woods"), plot.load_speeds(folder / "woods.speed.json"))


def names(verdicts):
    return {v.entry.model: v.word for v in verdicts}


def test_as_good_is_shown_and_not_assumed(woods):
    """24 and 28 of 160 wrong: nothing is beyond chance, and yet 160 images do not show a loss below .02."""
    s = study(woods)
    verdicts = plot.judge(plot.entries(s, "all"), 0.02)
    assert names(verdicts) == {"m-best": "best", "m-fast": "perhaps", "m-clip": "worse"} and verdicts[0].entry.model == "m-best"
    assert plot.recommended(verdicts, s.speeds).entry.model == "m-best"
    a, b = s.one("linear_probe", "m-fast"), s.one("linear_probe", "m-best")
    assert verdicts[1].gap == pytest.approx(plot.differ(a.right(), b.right(), b, 3)) and verdicts[1].gap[1] < -0.02 < 0 < verdicts[1].gap[2]
    # with a margin above what the interval reaches it is as good, and three times as fast
    verdicts = plot.judge(plot.entries(s, "all"), 0.2)
    assert names(verdicts)["m-fast"] == "as good" and plot.recommended(verdicts, s.speeds).entry.model == "m-fast"
    assert plot.recommended(verdicts, s.speeds | {"m-fast": 440.0}).entry.model == "m-best"  # not clearly faster
    assert plot.recommended(verdicts, {}).entry.model == "m-best"
    assert plot.recommended(verdicts, {"m-fast": 900.0}).entry.model == "m-best"  # speeds are compared where all are known


def test_several_encoders_are_compared_at_once(woods):
    """A gap that one comparison would call worse is not told apart when ten are made."""
    s = study(woods)
    best, other = s.one("linear_probe", "m-best"), s.one("linear_probe", "m-fast")
    change(other, best.right() * ~np.isin(np.arange(N), range(20, 26)))  # six more are wrong: mid-p .03
    assert plot.differ(other.right(), best.right(), best)[2] < 0 < plot.differ(other.right(), best.right(), best, 10)[2]


def test_an_encoder_that_guesses_is_never_the_best(woods):
    s = study(woods)
    run = s.one("zero_shot", "m-clip")
    change(run, np.arange(N) % 4 == 0)
    verdicts = plot.judge(plot.entries(s, "0"), 0.02)
    assert names(verdicts) == {"m-clip": "guessing"} and plot.recommended(verdicts, s.speeds) is None
    assert "**No labels: none.** No encoder is shown to do better than guessing." in plot.advise(s)[0]


def test_a_method_that_its_sibling_beats_is_not_shown(woods):
    s = study(woods)
    few = s.one("few_shot", "m-clip")
    assert plot.shown(s, "m-clip", "4").few == "text-init"
    change(few, 1, "4", "linear")
    assert plot.shown(s, "m-clip", "4").few == "linear" and plot.shown(s, "m-clip", "1").few == "text-init"
    change(few, 1, "1", "tip")
    assert "**1 label a class: take m-clip** (tip, from names and labels)" in "\n".join(plot.advise(s)[0])
    assert plot.shown(s, "m-fast", "1").few == "linear" and plot.shown(s, "m-fast", "2") is None
    change(few, 1, "32", "text-init")  # all labels: the probe is beaten
    assert plot.shown(s, "m-clip", "all").few == "text-init" and plot.shown(s, "m-best", "all").run.script == "linear_probe"


def test_validation_chooses_method_and_rate(woods):
    s = study(woods)
    assert [s.tuned(m).file.stem for m in ("m-clip", "m-fast")] == ["m-clip-ml", "m-fast-ml"]  # of equals ml; .7 beats .6
    s.one("finetune", "m-clip", "cs").metrics["val"] = 0.71
    assert s.tuned("m-clip").variant == "cs"


def test_labels_that_are_enough_are_shown_from_the_top_down(woods):
    s = study(woods)
    few = s.one("few_shot", "m-best")
    (k4, gap, word), (k1, _, below) = plot.enough(few, 0.05)
    assert (k4, k1) == ("4", "1") and gap[0] == pytest.approx(-1 / 160) and word == "enough" and below == "too few"
    assert [word for *_, word in plot.enough(few, 0.02)] == ["cannot be told", ""]  # 160 images cannot show that .006 is below .02
    change(few, few.right("32"), "1")  # one label by luck as good as all
    assert [word for *_, word in plot.enough(few, 0.02)] == ["cannot be told", ""]
    line = next(line for line in plot.advise(s, 0.05)[0] if line.startswith("**How many labels a class**"))
    assert "m-clip 4 (1 lose accuracy: -0." in line
    line = next(line for line in plot.advise(s, 0.02)[0] if line.startswith("**How many labels a class**"))
    assert "m-best all (4 may do, which so few test images cannot show: -0.01 (" in line


def test_advice_names_what_it_rests_on(woods):
    said = "\n".join(plot.advise(study(woods))[0])
    assert "**All labels, encoder unchanged: take m-best** (linear probe, from labels alone). It names 0.85 (0." in said
    assert "m-fast may be as good: 160 test images cannot tell. Worse: m-clip." in said
    assert "30% of the test images are copies of training images" in said and "rests on 160 test images" in said
    assert "training the network" not in said and "enlarging the pictures 7 s" in said
    s = study(woods)
    for run in s.runs:
        if "true" in run.arrays:
            run.arrays["true"] = np.where(run.arrays["true"] == 3, 2, run.arrays["true"])
            run.arrays["true"][-2:] = 3
    assert "1 class judged on one or two test images: elm" in "\n".join(plot.advise(s)[0])


def test_srgan_is_compared_picture_by_picture(woods):
    write(woods, "zero_shot", "m-clip", {"top1": 0.75, "confusions": []}, wrong=range(0, 160, 4), data="woods-srgan")
    line = next(line for line in plot.advise(study(woods))[0] if line.startswith("**Enlarging by"))
    assert "(bicubic) helps here:** of 3 comparisons 1 clearly better and 0 clearly worse" in line and "to +0.25 (+0.1" in line


@pytest.mark.parametrize("name, word", [("index", "test images of woods, by their names"), ("cluster", "groups or copies")])
def test_other_test_images_are_not_compared(name, word, woods, capsys):
    file = woods / "linear_probe/woods/m-fast.json"
    saved = dict(np.load(file.with_suffix(".npz")))
    np.savez(file.with_suffix(".npz"), **saved | {name: saved[name][::-1]})
    changed(file, "{", "{")
    with pytest.raises(SystemExit):
        study(woods)
    assert word in capsys.readouterr().err


def test_each_result_is_a_row_with_its_command(woods):
    summary = plot.summarise(study(woods))
    rows = {(r["model"], r["method"], r["upsampling"], r["labels"]): r for r in summary["rows"]}
    # zero-shot 2, prompts 1, probes 3, few-shot 3 models of 2 shots, frozen 3, ml 6 + 1, cs 1 + 1
    assert len(summary["rows"]) == len(rows) == 24
    row = rows["m-clip", "linear probe", "bicubic", 20.0]
    assert row["command"] == "python linear_probe.py --data woods --model m-clip" and row["test"][0] == 0.5
    assert ("m-clip", "few-shot, text-init", "bicubic", 4.0) in rows and ("m-fast", "few-shot, linear", "bicubic", 1.0) in rows
    text = plot.render(json.loads(json.dumps(summary)))
    reasons = 1 + 3 + 3 + 3 + 3  # zero-shot, 1 and 4 labels, all, fine-tuned
    assert text.count("\n| ") == 2 + 24 + reasons and "| woods | m-clip | linear probe | bicubic | 20 | 0.50 (" in text


def labels(ax):
    return [label for label in ax.get_legend_handles_labels()[1] if label != "chance"]


def legend(fig):
    return [text.get_text() for text in fig.legends[0].get_texts()]


def test_every_figure_has_all_its_curves_in_the_colour_of_the_model(woods):
    s = study(woods)
    drawn, lacking = plot.figures(s)
    names = "summary few_shot frozen_and_full prompts confusions calibration wise_ft upsampling zero_shot-m-clip methods-m-clip"
    assert set(drawn) == {f"{name}.png" for name in names.split()} and not lacking
    clip, best, fast = drawn["few_shot.png"].axes
    assert labels(clip) == ["class-mean", "linear", "tip", "text-init", "zero-shot"] and labels(fast) == ["class-mean", "linear"]
    train, val = drawn["frozen_and_full.png"].axes
    drawn_as = [(s.colours[model], line) for model in s.models for line in ("--", "-")]
    assert [(line.get_color(), line.get_linestyle()) for line in train.lines] == drawn_as  # and no chance, which lies below
    assert legend(drawn["frozen_and_full.png"]) == [
        *s.models,
        "linear layer alone, from a random start",
        "all of the encoder, from the linear probe",
    ]
    assert legend(drawn["methods-m-clip.png"]) == [f"{m}, {u}" for u in plot.UPSAMPLINGS for m in ("ML", "CS")]
    *encoders, reject = drawn["calibration.png"].axes
    assert [ax.get_title() for ax in encoders] == s.models and [list(line.get_ydata()) for line in reject.lines] == [[0.7, 0.5]] * 3
    looks = [("-", [0, 1]), ("--", [0.7, 0.95]), ("-", [0.4, 0.6])]  # even, before, after
    assert all([(line.get_linestyle(), list(line.get_xdata())) for line in ax.lines] == looks for ax in encoders)
    assert labels(drawn["wise_ft.png"].axes[0]) == ["m-clip, ml", "m-clip, cs", "m-best, ml", "m-fast, ml"]
    assert len(drawn["prompts.png"].axes[0].get_yticks()) == 15
    assert drawn["upsampling.png"] == woods / "upsample/woods/eval.png" and drawn["zero_shot-m-clip.png"].suffix == ".png"
    titles = [ax.get_title() for ax in drawn["confusions.png"].axes]
    assert titles[:2] == ["ash → birch\n8 of 40", "elm → ash\n8 of 40"] and len(titles) == 2 * 4  # no empty third
    left, right = drawn["summary.png"].axes
    assert len(right.containers) == 1 + 3 + 3 + 1  # zero-shot, probes, ml, cs
    assert len(left.containers) == 8 + 3 * 2  # and 1 and 4 labels of each
    for file, panel in (("few_shot.png", clip), ("summary.png", left), ("wise_ft.png", drawn["wise_ft.png"].axes[0])):
        assert s.colours["m-clip"] in {to_hex(line.get_color()).upper() for line in panel.lines}, file
    x, y = val.lines[0].get_data()
    assert list(x) == [0, 0.5, 1, 1.5, 2] and y == pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7])  # true epochs, from the start
    chance = [line.get_ydata()[0] for ax in (clip, left, right) for line in ax.lines if line.get_label() == "chance"]
    assert chance == [0.25] * 3


def test_draws_from_results_alone_at_the_width_of_a_readme(woods, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(plot.main, "--data", "woods")
    assert code == 0 and not err and "missing" not in out
    files = sorted((tmp_path / "figures" / "woods").iterdir())
    assert len(files) == 10 and all(600 <= Image.open(file).width <= 920 for file in files)


# ---- how figures look -------------------------------------------------------------------------------------------------


def texts(fig):
    """{text: its box in pixels} of all that is written in a figure, ticks inside their axes alone, as (text, box)."""
    fig.draw_without_rendering()
    found = []
    for text in fig.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            found.append(text)
    for ax in fig.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not (low <= tick.get_loc() <= high and axis.get_visible() and ax.axison):
                    found = [text for text in found if text not in (tick.label1, tick.label2)]
    return [(text.get_text(), text.get_window_extent()) for text in found]


def faults(fig):
    """What a reader could not read: text outside, over other text, or cut; a legend over axes."""
    all_of_them, frame, wrong = texts(fig), fig.bbox, []
    for i, (text, box) in enumerate(all_of_them):
        if "…" in text:
            wrong.append(f"cut: {text}")
        if box.x0 < frame.x0 - 1 or box.y0 < frame.y0 - 1 or box.x1 > frame.x1 + 1 or box.y1 > frame.y1 + 1:
            wrong.append(f"outside: {text}")
        wrong += [f"{text!r} over {other!r}" for other, b in all_of_them[:i] if Bbox.intersection(box.padded(-1), b.padded(-1))]
    for box in (legend.get_window_extent() for legend in (*fig.legends, *(ax.get_legend() for ax in fig.axes)) if legend):
        wrong += [f"a legend over {ax.get_title()!r}" for ax in fig.axes if box.overlaps(ax.get_window_extent())]
    return wrong


LONG = ["yellow_billed_long_tailed_mountain_cuckoo", "a" * 40, "great northern diver of the farther $eas$", "EASTERN GOLDEN WEAVER"]


def odd(folder, models, shots=("1", "4", "32"), clips=(), speeds=None, everything=80):
    """Results of frozen features alone, of `models`, with `everything` training images."""
    counts = {"train": everything, "val": 20, "test": N}
    over = {"data": {"fingerprint": "f1", "classes": CLASSES, "words": CLASSES, "counts": counts}, "labels_used": everything}
    for i, model in enumerate(models):
        wrong = range(10 + 8 * i)
        probe = {"near_copies": 0, "test_without_near_copies": 0.5, "confusions": [], "calibration": SURE}
        name = re.sub("[/@:]", "-", model)
        write(folder, "linear_probe", name, probe, model, wrong, over=over)
        if model in clips:
            write(folder, "zero_shot", name, {"top1": 0.5, "confusions": []}, model, wrong, over={**over, "labels_used": 0})
        if shots:
            zero = {"zero_shot": 0.5, "zero_shot_ci95": [0.4, 0.6]} if model in clips else {}
            table = {k: {"mean": 1 - len(wrong) / N, "std": 0.02} for k in shots}
            few = {"labels": {k: min(4 * int(k), everything) for k in shots}, "methods": ["linear"], "linear": table, **zero}
            right = np.ones((len(shots), 1, 2, N), np.uint8)
            right[..., list(wrong)] = 0
            write(folder, "few_shot", name, few, model, over=over, arrays={"right": right})
    if speeds:
        (folder / "woods.speed.json").write_text(json.dumps({"images_per_second": dict(zip(models, speeds))}))


NINE = [f"a-model-with-number-{i}" for i in range(9)]
TWELVE = [
    *("ViT-B/32", "ViT-L/14@336px", "open_clip:ViT-B-16-SigLIP2/webli", "open_clip:ViT-SO400M-14-SigLIP2-378/webli"),
    *("open_clip:convnext_base_w/laion2b_s13b_b82k_augreg", "timm:vit_small_patch14_dinov2.lvd142m", "resnet101", "mine.py:small"),
    *("timm:eva02_base_patch14_448.mim_in22k_ft_in22k_in1k", "timm:convnextv2_base.fcmae_ft_in22k_in1k", "RN101", "efficientnet_b7"),
]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"models": ["one"], "speeds": [317.0]},
        {"models": ["one"], "shots": ("1",), "clips": ["one"], "speeds": [0.4]},
        {"models": ["one", "two"], "shots": ()},
        {"models": ["one", "two"], "shots": ("64",), "speeds": [100.0, 103.0]},
        {
            "models": NINE[:4],
            "shots": ("1", *map(str, range(3, 20)), "32"),
            "clips": NINE[:1],
            "speeds": [1, 20, 800, 40000],
        },
        {
            "models": NINE,
            "shots": ("1", "2", "4", "8", "16", "32", "64", "128"),
            "clips": NINE[:5],
            "speeds": range(70, 150, 9),
            "everything": 4000,
        },
        {
            "models": TWELVE,
            "shots": ("1", "2", "4", "8", "16", "32", "64"),
            "clips": TWELVE[:5],
            "speeds": range(20, 1000, 80),
            "everything": 4000,
        },
    ],
    ids=["one encoder", "k=1", "no few_shot", "all alone", "four encoders, many k", "nine encoders", "twelve of long names"],
)
def test_figures_of_odd_studies_can_be_read(kwargs, tmp_path):
    odd(tmp_path, **kwargs)
    s = study(tmp_path)
    drawn, _ = plot.figures(s)
    assert {file: wrong for file, fig in drawn.items() if "zero_shot" not in file and (wrong := faults(fig))} == {}
    for file in {"summary.png", "few_shot.png"} & {*drawn}:
        ax = drawn[file].axes[0]
        ticks = {label.get_text(): x for x, label in zip(ax.get_xticks(), ax.get_xticklabels())}
        assert ("0" in ticks) == bool(kwargs.get("clips")), file
        assert ticks.get("all", math.inf) == max(ax.get_xticks()) if "all" in ticks else file == "few_shot.png"
        x = [x for line in ax.lines if line.get_label() != "chance" for x in line.get_xdata()]
        ends = ax.transData.transform([(min(x), 0), (max(x), 0)])[:, 0]
        assert ax.bbox.x0 + 7 < ends[0] and ends[1] < ax.bbox.x1 - 7, file  # whole markers
        places = np.log2(ax.get_xticks())
        assert max(np.abs(places - np.log2(a)).min() for a in x) < 0.13 * np.log2(np.divide(*ax.get_xlim()[::-1])), (
            file
        )  # each near its tick


@pytest.mark.parametrize("low", [0.03, 1, 1.9, 2.1, 95, 9000, 20000])
def test_speeds_have_ticks_that_do_not_touch(low, tmp_path):
    for factor in (1, 1.3, 3, 9, 30, 400, 20000):
        odd(tmp_path, ["one", "two"], shots=(), clips=["one"], speeds=[low, min(low * factor, 60000)])
        with rc_context(plot.FONTS):
            fig = plot.draw_summary(study(tmp_path))
        assert not faults(fig), (low, factor)
        right = fig.axes[1]
        ends = [right.transData.transform((line.get_xdata()[0], 0))[0] for line in right.lines if line.get_label() != "chance"]
        assert right.bbox.x0 + 9 < min(ends) and max(ends) < right.bbox.x1 - 9, (low, factor)  # the whole of a star, and some air
        shown = [x for x in right.get_xticks() if right.get_xlim()[0] <= x <= right.get_xlim()[1]]
        assert len(shown) >= (2 if factor > 3 else 1), (low, factor)


def test_all_stand_right_of_the_last_number_however_uneven_the_classes(tmp_path):
    """60, 20, 5 and 2 training images: 32 labels a class are more than the mean of all, which is 22."""
    odd(tmp_path, ["one"], ("1", "4", "32", "64"), everything=87)
    few = tmp_path / "few_shot/woods/one.json"
    changed(few, '"32": 87', '"32": 59')
    changed(few, '"4": 16', '"4": 15')
    drawn, _ = plot.figures(study(tmp_path))
    for file in ("summary.png", "few_shot.png"):
        ax = drawn[file].axes[0]
        assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "4", "32", "all"], file
        assert list(ax.get_xticks()) == sorted(ax.get_xticks()) and ax.get_xlabel() == "labels a class, or all that a class has"
        last = max(x for line in ax.lines if line.get_label() != "chance" for x in line.get_xdata())
        assert 32 < ax.get_xticks()[-1] == pytest.approx(last), file


def test_all_stand_in_one_place_where_encoders_were_taught_with_other_numbers(tmp_path):
    odd(tmp_path, ["one"], ("1", "4", "32"))
    odd(tmp_path, ["two"], ("1", "2", "32"))
    axes = plot.draw_few_shot(study(tmp_path)).axes
    assert [max(max(line.get_xdata()) for line in ax.lines if line.get_label() != "chance") for ax in axes] == [8, 8]
    assert [[label.get_text() for label in ax.get_xticklabels()] for ax in axes] == [["1", "2", "4", "all"]] * 2


def test_names_are_whole_however_long(woods):
    s = study(woods)
    for run in s.runs:
        run.record["data"]["classes"] = LONG
        for c in run.metrics.get("confusions", []):
            c["true"], c["predicted"] = LONG[CLASSES.index(c["true"])], dict(zip(CLASSES, LONG)).get(c["predicted"], "yew")
    for row in (rows := s.one("prompts", "m-clip").metrics["templates"]):
        row["template"] = row["template"].replace("of a {}", "that was taken on a dark winter night of a {}, a type of {type}")
    s.name = "woods and " * 20
    drawn, _ = plot.figures(s)
    drawn = {file: fig for file, fig in drawn.items() if "zero_shot" not in file and file != "upsampling.png"}
    assert {file: wrong for file, fig in drawn.items() if (wrong := faults(fig))} == {}
    seen = "".join("".join(text.split()) for text, _ in texts(drawn["confusions.png"]))
    assert all("".join(name.split()) in seen for name in LONG[:2])  # the first and last, which are confused, with their neighbours
    assert "\n" not in plot.wrap("Daurian Redstart → Baltimore Oriole", 36) and "\n" in plot.wrap("DAURIAN REDSTART → BALTIMORE ORIOLE", 36)
    seen = "".join("".join(text.split()) for text, _ in texts(drawn["prompts.png"]))
    assert "".join(rows[0]["template"].split()) in seen


def test_long_names_of_encoders_are_broken_where_they_have_parts():
    assert plot.called("ViT-L/14@336px", 30) == "ViT-L/14@336px"
    assert plot.called(TWELVE[2], 30) == "open_clip:ViT-B-16-SigLIP2/\nwebli"
    assert all(plot.called(model, 16).replace("\n", "") == model for model in TWELVE)


def test_results_are_found_by_whatever_names_the_data():
    for data in ("woods", "/some/woods/", "some/woods.csv", "woods.zip", "../woods.tar", "torchvision:woods"):
        assert plot.name_of(data) == "woods"


def test_twelve_encoders_have_twelve_colours_and_none_is_that_of_chance():
    shades = [np.array(to_rgb(colour)) for colour in (*plot.COLOURS, plot.GREY, "black")]
    assert len(shades) == 14 and min(np.abs(a - b).max() for i, a in enumerate(shades) for b in shades[:i]) > 0.2


PROTAN = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]  # Machado et al. 2009
DEUTAN = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]


@pytest.mark.parametrize("cones, least", [(np.eye(3), 26), (PROTAN, 20), (DEUTAN, 17)], ids=["all cones", "no red ones", "no green ones"])
def test_the_colours_differ_for_people_who_lack_cones(cones, least):
    rgb = np.array([to_rgb(colour) for colour in plot.COLOURS])
    light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.transpose(cones)
    xyz = light.clip(0, 1) @ np.transpose([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    f = np.cbrt(xyz / [0.9505, 1, 1.089])
    x, y, z = np.where(f**3 > 0.008856, f, 7.787 * f**3 + 16 / 116).T
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)
    assert least < min(np.linalg.norm(a - b) for i, a in enumerate(lab) for b in lab[:i]) < least + 1


@pytest.mark.parametrize(
    "change, word",
    [
        (
            {"data": {"name": "woods", "fingerprint": "other", "classes": CLASSES, "words": CLASSES, "counts": {}}},
            "of different pictures of woods",
        ),
        ({"data": {"fingerprint": "f1", "classes": CLASSES, "words": ["x"], "counts": {"test": N}}}, "of different words for the classes"),
        ({"model": {"name": "m-clip", "sha256": "other"}}, "of different weights of m-clip"),
        ({"args": {"seed": 1}}, "of different seeds"),
        ({"args": {"seed": 0, "groups": "p1"}}, "of different --groups"),
        ({"args": {"seed": 0, "fit": "pad"}}, "of different --fit of m-clip"),
        (
            {"environment": {"torch": "2", "torchvision": "0", "device": "cpu", "precision": "bfloat16"}},
            "of different devices or precisions",
        ),
    ],
)
def test_refuses_results_that_do_not_belong_together(change, word, woods, tmp_path, monkeypatch, call):
    file = write(woods, "prompts", "m-clip", {"templates": [], "ensemble": []}, over=change)
    monkeypatch.chdir(tmp_path)
    for mode in ((), ("--table",)):
        code, out, err = call(plot.main, "--data", "woods", *mode)
        assert code == 2 and not out and word in err and file.name in err and err.count("\n") == 1
    assert not (tmp_path / "figures").exists()


def test_refuses_srgan_pictures_of_other_pictures_and_two_results_of_one_run(woods, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    shutil.copy(woods / "prompts/woods/m-clip.json", woods / "prompts/woods/again.json")
    shutil.copy(woods / "prompts/woods/m-clip.npz", woods / "prompts/woods/again.npz")
    code, _, err = call(plot.main, "--data", "woods")
    assert code == 2 and "again.json" in err and "two results of one run" in err
    os.remove(woods / "prompts/woods/again.json")
    file = woods / "zero_shot/woods-srgan/m-clip.json"
    changed(file, '"source": "f1"', '"source": "f0"')
    code, _, err = call(plot.main, "--data", "woods")
    assert code == 2 and "of different pictures of woods" in err


def test_names_what_is_missing_and_draws_the_rest(woods, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    os.remove(woods / "few_shot/woods/m-fast.json")
    for script in ("prompts", "finetune", "upsample"):  # fewer figures are drawn faster
        shutil.rmtree(woods / script)
    os.remove(woods / "zero_shot/woods/m-clip.json")
    names = ["results/prompts/woods/m-clip.json", "results/linear_probe/woods/m-fast.json"]
    code, out, _ = call(plot.main, "--data", "woods", "--table", "--expect", *names)  # these and no others
    assert code == 1 and out.endswith(f"\nmissing: {names[0]}\n") and out.count("missing") == 1
    # what is older than the stamp counts as missing, and nothing is said of it
    both = ["results/linear_probe/woods/m-clip.json", "results/linear_probe/woods/m-fast.json"]
    (tmp_path / "stamp").touch()
    for file, time in ((both[0], 2000), (both[1], 2002), ("stamp", 2001)):
        os.utime(file, (time, time))
    code, out, _ = call(plot.main, "--data", "woods", "--table", "--stamp", "stamp", "--expect", *both)
    assert code == 1 and out.splitlines()[-1].startswith(f"missing: {both[0]}, as it must be since the last change")
    assert out.count("missing") == 1 and "m-clip | linear probe" not in out and "m-fast | linear probe" in out
    os.utime("stamp", (2000, 2000))
    code, out, _ = call(plot.main, "--data", "woods", "--table", "--stamp", "stamp", "--expect", *both)
    assert code == 0 and "m-clip | linear probe" in out
    code, out, _ = call(plot.main, "--data", "woods")  # what the others have
    assert code == 1 and out.endswith("\nmissing: results/few_shot/woods/m-fast.json\n")
    assert "note: prompts.png is not drawn: no result of prompts.py" in out
    assert (tmp_path / "figures/woods/summary.png").exists()
    code, _, err = call(plot.main, "--data", "moor")
    assert code == 2 and "moor" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "damage, word",
    [
        (lambda f: f.write_text("{"), "cannot be read as JSON"),
        (lambda f: f.write_text("[]"), "not a result of these scripts"),
        (lambda f: f.write_text(f.read_text().replace('"command"', '"order"')), "m-clip.json: damaged"),
        (lambda f: changed(f, '"command"', '"order"'), "not a whole result of these scripts"),
        (lambda f: f.with_suffix(".npz").unlink(), "m-clip.npz: "),
        (lambda f: f.with_suffix(".npz").write_bytes(b"PK"), "m-clip.npz: "),
    ],
)
def test_a_broken_result_is_one_line(damage, word, woods, tmp_path, monkeypatch, call):
    damage(woods / "linear_probe/woods/m-clip.json")
    monkeypatch.chdir(tmp_path)
    code, _, err = call(plot.main, "--data", "woods")
    assert code == 2 and word in err and err.count("\n") == 1


def test_help_needs_nothing(call):
    code, out, _ = call(plot.main, "--help")
    assert code == 0 and all(flag in out for flag in ("--data", "--table", "--readme", "--expect")) and "None" not in out


def test_frozen_features_alone_make_a_study(woods):
    """As on real data without FINETUNE=1."""
    for script in ("finetune", "upsample"):
        shutil.rmtree(woods / script)
    shutil.rmtree(woods / "zero_shot/woods-srgan")
    drawn, lacking = plot.figures(study(woods))
    names = "summary few_shot prompts confusions calibration zero_shot-m-clip"
    assert set(drawn) == {f"{name}.png" for name in names.split()} and len(lacking) == 4
    said = "\n".join(plot.advise(study(woods))[0])
    assert (
        "**Fine-tuning:** not run (`FINETUNE=1`)." in said
        and "**SRGAN:** not run (`FINETUNE=1`)." in said
        and not plot.missing(study(woods))
    )


def test_encoders_that_were_shown_pictures_in_different_ways_are_not_compared_in_silence(woods):
    assert "to make pictures square" not in "\n".join(plot.advise(study(woods))[0])
    for file in woods.glob("*/*/m-clip*.json"):
        changed(file, '"args": {', '"args": {"fit": "squash", ')
    said = "\n".join(plot.advise(study(woods))[0])
    assert "--fit squash: m-clip" in said and "as each has it: " in said


def test_the_page_is_written_whole_and_over_no_other_file(woods, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    for script in ("prompts", "finetune", "upsample"):  # fewer figures are drawn faster
        shutil.rmtree(woods / script)
    code, out, err = call(plot.main, "--data", "woods", "--to", "pics", "--readme", "page.md")
    page, summary = (tmp_path / "page.md").read_text(), json.loads((tmp_path / "pics/summary.json").read_text())
    assert code == 0 and not err and out.endswith("wrote pics/summary.json and page.md\n") and page == plot.render(summary)
    drawn = [f"pics/{path.name}" for path in (tmp_path / "pics").glob("*.png")]
    assert sorted(re.findall(r"!\[.*?\]\((.*?)\)", page)) == sorted(drawn) and len(drawn) == 5
    assert all(f"- {sentence}\n" in page for sentence in summary["advice"]) and "prompts" not in page
    assert page.count("*Zero-shot: ") == 1 and "Results of `python zero_shot.py --data woods --model m-clip`." in page
    (tmp_path / "mine.md").write_text("mine")
    code, _, err = call(plot.main, "--data", "woods", "--to", "pics", "--readme", "mine.md")
    assert code == 2 and "mine.md: is there" in err and err.count("\n") == 1 and (tmp_path / "mine.md").read_text() == "mine"
    assert call(plot.main, "--data", "woods", "--to", "pics", "--readme", "page.md")[0] == 0  # its own is
