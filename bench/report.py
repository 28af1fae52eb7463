"""One page of HTML that says what results/ says, to send or to print: it needs no other file and asks no server for anything.

    python bench/report.py --data toy       # results/toy.report.html, in 10 s on 2 cores

Answer, all results (a table that its heads sort), figures, data, labels and copies to look at, confusions, calibration, how it was
made, and what cannot be concluded. plot.py reads results, draws and reasons; no model is run and no data set is read.
"""

import argparse
import base64
import csv
import hashlib
import html
import io
import re
import sys
from datetime import datetime
from pathlib import Path
from string import Template

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import plot
from common import Image, all_letters, atomic, counted, fail, some, why

TEMPLATE = Path(__file__).with_suffix(".html")  # style and script of the page
ROOM = 3_400_000  # bytes for all pictures; as text they take a third more, and the page stays below 5 MB
FIRST = 24  # rows of a list
WORST = 5  # confusions of an encoder
LISTS = {  # that linear_probe.py writes beside its results: heading, what it is, and the flag that asks for it
    "suspects": ("Labels that look wrong", "The other pictures speak against them: look at each before it is changed.", "--suspects"),
    "pairs": (
        "Pictures that are in the data twice",
        "Within and across splits. Where the two labels differ, one is wrong; no encoder can be praised for test pictures that it learnt.",
        "--out",
    ),
}


def safe(text):
    """Text for any place in the page, attributes too; bytes of a file's name that are not UTF-8 as \\udcff."""
    return html.escape(str(text).encode("utf-8", "backslashreplace").decode("utf-8"))


def prose(text):
    """HTML of a line of plot.py's Markdown: `code` and **bold**; all else is text."""
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", re.sub("`([^`]+)`", r"<code>\1</code>", safe(text)))


def number(text):
    """The number that a cell begins with, by which it is sorted: "0.84 (0.79 to 0.87)", "1,440", "3 %"; None of other text."""
    found = re.match(r"-?[\d,]*\.?\d+(e[+-]\d+)?(?= [(%]|$)", text)
    return found and float(found[0].replace(",", ""))


def table(title, heads, rows):
    """A table in a box that scrolls; a cell is text, or (text, number to sort by). Heads are buttons; `title` is read aloud."""
    lines = [f'<div class="scroll" role="region" tabindex="0" aria-label="{safe(title)}"><table><thead><tr>']
    lines += [f'<th scope="col" aria-sort="none"><button type="button">{safe(head)}</button></th>' for head in heads]
    lines.append("</tr></thead><tbody>")
    for row in rows:
        lines.append("<tr>")
        for cell in row:
            text, value = cell if isinstance(cell, tuple) else (str(cell), number(str(cell)))
            sort = "" if value is None else f' class="number" data-value="{value:.12g}"'
            text = f"<code>{safe(text[1:-1])}</code>" if text[:1] == "`" else safe(text)
            lines[-1] += f"<td{sort}>{text}</td>"
        lines[-1] += "</tr>"
    return "\n".join([*lines, "</tbody></table></div>"])


def items(lines):
    return "".join(f"<li>{prose(line)}</li>" for line in lines)


def figure(picture, alt, caption, room):
    """A Figure of matplotlib or the file of a picture, in at most `room` bytes: with 256 colours where it takes more, then smaller."""
    source = picture
    if not isinstance(picture, Path):
        picture.savefig(source := io.BytesIO(), format="png", dpi=100)
    try:
        image = Image.open(source).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        fail(f"{picture}: cannot be read as a picture: {why(error)}")
    image.save(file := io.BytesIO(), "png")
    while file.tell() > room and max(image.size) > 16:
        image.quantize(256).save(file := io.BytesIO(), "png", optimize=True)
        image = image.resize([max(1, side * 4 // 5) for side in image.size])
    text = base64.b64encode(file.getvalue()).decode()
    return f'<figure><img alt="{safe(alt)}" src="data:image/png;base64,{text}"><figcaption>{prose(caption)}</figcaption></figure>'


def answer(summary):
    """Three sentences of the advice: with no labels, with all of them, and whether training the encoder or an SRGAN pays."""
    advice, said = summary["advice"], []
    for title in (plot.BUDGETS["0"], plot.BUDGETS["all"]):
        line = next((line for line in advice if line.startswith(f"**{title}: ")), f"**{title}:** not tried.")
        start, told, _ = line.partition(" of the test images right.")
        said.append(start.replace("). It names ", "): it names ", 1) + told)
    # of fine-tuning what holds for the encoder that is then taken; of SRGAN the verdict
    taken = next((row[1] for row in summary["reasons"] if row[0] == plot.BUDGETS["fine-tuned"] and "take it" in row[5]), None)
    tried = next((line.partition(" tried): ")[2] for line in advice if line.startswith("**Fine-tuning, ")), "").rstrip(".").split("; ")
    of_taken = [part for part in tried if taken and part.startswith(f"{taken}: ")] or [part for part in tried if part]
    tuning = f"**Fine-tuning** {'; '.join(of_taken)}" if of_taken else "**Fine-tuning:** not run (`FINETUNE=1`)"
    found = next((m[1] for line in advice if (m := re.match(r"\*\*Enlarging (.+?):\*\*", line))), None)
    return [*said, f"{tuning}; {f'enlarging {found}' if found else 'SRGAN: not run'}."]


def data_part(study):
    """How many pictures there are of what, and how many could not be read."""
    runs = [run for way in plot.UPSAMPLINGS for script in ("linear_probe", "zero_shot") for run in study.find(script, None, None, way)[:1]]
    known = {run.record["data"]["name"]: run.record["data"] for run in reversed(runs or study.runs[:1])}
    d = known.get(study.name, study.runs[0].record["data"])
    rows = [(name, split, f"{n:,}", r.get("skipped", {}).get(split, 0)) for name, r in known.items() for split, n in r["counts"].items()]
    names = [c if c == w else f"{c} (in captions {w})" for c, w in zip(d["classes"], d["words"])]
    text = f"{counted(len(names), 'class')}: {some(names, 300)}."
    return table("pictures and skipped files", ("data", "split", "pictures", "skipped"), rows) + f"<p>{safe(text)}</p>"


def lists_part(study, probes, room):
    """What linear_probe.py found suspicious in the data, by the first of the probes that has it."""
    lines = []
    for kind, (title, what, flag) in LISTS.items():
        files = (run.file.with_name(f"{run.file.stem}-{kind}.csv") for run in probes)
        if not (file := next((file for file in files if file.is_file()), None)):
            end = f"results/linear_probe/{study.name}/MODEL{'-suspects.csv' if kind == 'suspects' else '.json'}"
            command = safe(f"python linear_probe.py --data {study.name} --model MODEL {flag} {end}")
            lines.append(f"<h3>{title}</h3><p>No list: <code>{command}</code> makes it.</p>")
            continue
        with open(file, encoding="utf-8", errors="surrogateescape", newline="") as stream:
            heads, *rows = [row for row in csv.reader(stream) if row] or [[]]
        shown = f"the first {FIRST} of {len(rows):,}" if len(rows) > FIRST else f"all {len(rows):,}" if rows else "there are none"
        lines.append(f"<h3>{title}</h3><p>{what} In {safe(file)}: {shown}.</p>")
        if rows and (sheet := file.with_suffix(".png")).is_file():
            lines.append(figure(sheet, f"Contact sheet: {title}, the first of the list, under their names.", str(sheet), room))
        lines.append(table(title, heads, [(row + [""] * len(heads))[: len(heads)] for row in rows[:FIRST]]) if rows else "")
    return "\n".join(lines)


def confusions_part(study):
    """The pairs of classes that are mistaken most often, of each encoder with no labels and with all."""
    heads = "encoder", "method", "class", "taken for", "test pictures", "of the class"
    runs = study.find("zero_shot") + study.find("linear_probe")
    found = [(run, c) for run in runs for c in run.metrics["confusions"][:WORST]]
    rows = [(r.model, r.method, c["true"], c["predicted"], c["count"], (f"{c['share']:.0%}", c["share"])) for r, c in found]
    return table("confusions", heads, rows) if rows else "<p>None.</p>"


def calibration_part(runs):
    """How far confidences can be believed, of the runs that have measured it; nothing where none has."""
    heads = ["encoder", "method", "temperature", "ECE before", "ECE", "Brier before", "Brier", "sets wanted"]
    heads += [f"{kind} sets: {head}" for kind in ("LAC", "APS") for head in ("true class inside", "classes", "least of a class")]
    rows = []
    for run in runs:
        c = run.metrics["calibration"]
        numbers = [f"{c[key]:.3f}" for key in ("temperature", "ece_before", "ece", "brier_before", "brier")]
        rows.append([run.model, run.method, *numbers, f"{1 - c['alpha']:g}"])
        for m in (c["lac"], c["aps"]):
            least = min(m["per_class"].items(), key=lambda item: item[1])
            rows[-1] += [f"{m['coverage']:.3f}", f"{m['size']:.2f}", (f"{least[1]:.2f} ({least[0]})", least[1])]
    text = "Of pictures named with confidence 0.8, four of five should be named right: ECE is the mean distance from that, before and after"
    text += " a temperature was fitted on held-out pictures. Sets of classes should hold the true one as often as is wanted."
    return f'<h2 id="calibration">Calibration</h2>\n<p>{text}</p>{table("calibration", heads, rows)}' if rows else ""


def made_part(study):
    """Versions, seeds, hashes, dates and commands, from the records."""
    runs, models = [], {}
    for run in study.runs:
        r, e, m = run.record, run.record["environment"], run.record["model"]
        when = datetime.fromtimestamp(run.file.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        versions = f"torch {e['torch']}, torchvision {e['torchvision']}; {e['device']}, {e['precision']}"
        runs.append((f"`{r['command']}`", r["args"]["seed"], e.get("code", ""), when, versions))
        if run.model:
            speed = study.speeds.get(run.model)
            models[run.model] = run.model, m["sha256"], m.get("size", ""), m.get("width", ""), f"{speed:,.0f}" if speed else "not measured"
    weights = table("weights", ("encoder", "SHA-256", "side in pixels", "features", "images/s"), models.values())
    return weights + table("runs", ("command", "seed", "code", "written", "versions and device"), runs)


def page(study, margin=plot.MARGIN):
    """The whole page as text."""
    summary = plot.summarise(study, margin)
    with all_letters():
        drawn, _ = plot.figures(study)
    best = [row[1] for row in summary["reasons"] if row[0] == plot.BUDGETS["all"] and "take it" in row[5]]
    probes = sorted(study.find("linear_probe"), key=lambda run: run.model not in best)  # of equals in the order of the study
    room = ROOM // (len(drawn) + len(LISTS))

    figures = []
    for name, picture in drawn.items():
        kind, _, model = name.removesuffix(".png").partition("-")
        caption = f"{plot.CAPTIONS[kind][0]} {model}".strip()
        figures.append(figure(picture, f"{study.name}, figure {kind}: {caption}", caption, room))

    rows = []
    for row in summary["rows"]:
        cells = [cell(row, summary["digits"]) for cell in plot.COLUMNS.values()]
        exact = {"labels a class": row["labels"], "test accuracy (95 % interval)": row["test"][0], "seconds of the run": row["seconds"]}
        rows.append([(cell, exact.get(head)) for head, cell in zip(plot.COLUMNS, cells)])
    total = next((len(run.arrays["true"]) for run in study.runs if run.model), 0)
    lacks = [f"Results that are missing: {some(files, 20)}."] if (files := sorted(plot.missing(study))) else []
    template = TEMPLATE.read_text(encoding="utf-8")
    script = re.search("<script>(.*)</script>", template, re.DOTALL)[1]
    return Template(template).substitute(
        hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        name=safe(study.name),
        answer=items(answer(summary)),
        advice=items(summary["advice"]),
        results=table("all results", plot.COLUMNS, rows),
        seconds=prose(plot.SECONDS),
        figures="\n".join(figures),
        data=data_part(study),
        lists=lists_part(study, probes, room),
        confusions=confusions_part(study),
        calibration=calibration_part([run for run in study.runs if "temperature" in (run.metrics.get("calibration") or ())]),
        fingerprint=safe(study.runs[0].record["data"]["fingerprint"]),
        margin=f"{margin:g}",
        made=made_part(study),
        limits=items([*plot.say_warnings(study, total), *lacks]),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="toy", help="name of the data set in the results (%(default)s)")
    parser.add_argument("--results", default="results", type=Path, metavar="FOLDER", help="(%(default)s)")
    parser.add_argument("--margin", type=float, default=plot.MARGIN, help="loss of accuracy up to which one is as good (%(default)s)")
    args = parser.parse_args()
    if not 0 < args.margin < 1:
        parser.error(f"--margin {args.margin:g}: must lie between 0 and 1")

    name = plot.name_of(args.data)
    study = plot.Study(name, plot.load(args.results, name), plot.load_speeds(args.results / f"{name}.speed.json"))
    if not study.runs:
        fail(f"--data {args.data}: no results in {args.results}/*/{name}/; run make all DATA={args.data} first, or the scripts with --out")
    text, out = page(study, args.margin), args.results / f"{name}.report.html"
    with atomic(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"wrote {out}: {counted(len(study.runs), 'result')}, {len(text) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
