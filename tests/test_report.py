"""bench/report.py: the page as a browser would read it, on results whose numbers are known."""

import csv
import importlib.util
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_plot import CLASSES, study, woods as made_woods

import plot
from common import seal

spec = importlib.util.spec_from_file_location("report", ROOT / "bench" / "report.py")
report = importlib.util.module_from_spec(spec)
spec.loader.exec_module(report)
woods = made_woods

EVIL = "<script>alert(1)</script>", "\"><img src=x onerror='alert(2)'>", "a]]>&amp;$title*b*`c`", "\udcff-latin"


class Page(HTMLParser):
    """What is in a page: tags with their attributes, the text of each part, and tables as lists of rows of text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.tables, self.open = [], {}, [], []
        self.part = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        if tag == "h2":
            self.part = dict(attrs)["id"]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # well-formed

    def handle_data(self, data):
        if self.open[-1:] in (["style"], ["script"]):
            return
        self.text[self.part] = self.text.get(self.part, "") + data
        if {"th", "td"} & {*self.open}:
            self.tables[-1][-1][-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def made(folder):
    s = study(folder)
    return s, report.page(s)


def probes_only(folder):
    """Without the runs whose figures take seconds."""
    for script in ("finetune", "few_shot", "prompts", "upsample"):
        shutil.rmtree(folder / script)
    return folder


def plain(markdown):
    return re.sub(r"\*\*|`", "", markdown)


def test_the_page_is_whole_small_and_needs_no_other_file(woods):
    s, text = made(woods)
    page = Page(text)
    assert len(text) < 5e6 and not page.open
    assert all(len(img["alt"]) > 20 and img["src"].startswith("data:image/png;base64,") for img in page.all("img"))
    assert len(page.all("img")) == len(plot.figures(s)[0]) == len({img["alt"] for img in page.all("img")})
    # nothing is fetched: no address in any attribute, no url() or @import in a style, and the page forbids it
    addresses = [value for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href", "srcset", "action", "data")]
    assert all(value.startswith(("data:", "#")) for value in addresses)
    assert [a["href"][1:] for a in page.all("a")] == [h["id"] for h in page.all("h2")]
    assert not re.search(r"url\(|@import|https?:|fetch\(|XMLHttp", re.sub(r"base64,[\w+/=]*", "", text))
    assert "default-src 'none'" in page.all("meta")[1]["content"] and "'sha256-" in page.all("meta")[1]["content"]
    # the answer comes first, then the advice whole
    summary = plot.summarise(s)
    assert page.all("h2")[0]["id"] == "the-answer"
    assert all(plain(line) in page.text["the-answer"] for line in (*report.answer(summary), *summary["advice"]))
    # every result is in the table, whose heads are buttons and whose cells know what they are sorted by
    heads, *rows = page.tables[0]
    assert heads == list(plot.COLUMNS) and len(rows) == len(summary["rows"]) > 10
    for told, row in zip(rows, summary["rows"]):
        assert told == [cell(row, summary["digits"]).strip("`") for cell in plot.COLUMNS.values()]
    ths = page.all("th")
    assert all(th["aria-sort"] == "none" and th["scope"] == "col" for th in ths) and len(page.all("button")) == len(ths)
    tests = re.findall(r'data-value="([^"]*)">\d\.\d\d \(', text)
    assert [float(value) for value in tests[: len(rows)]] == [row["test"][0] for row in summary["rows"]]
    boxes = [d for d in page.all("div") if d.get("class") == "scroll"]
    assert len(boxes) == len(page.tables) and all(d["tabindex"] == "0" and d["aria-label"] for d in boxes)


def test_three_sentences_of_the_advice_come_first(woods):
    s = study(woods)
    advice = plot.advise(s)[0]
    first, second, third = report.answer(plot.summarise(s))
    for said, title in ((first, "No labels"), (second, "All labels, encoder unchanged")):
        whole = next(line for line in advice if line.startswith(f"**{title}: "))
        assert whole.startswith(said.replace("): it names", "). It names")) and said.endswith(" of the test images right.")
    tuned = next(line for line in advice if line.startswith("**Fine-tuning"))
    taken = re.search(r"fine-tuned: take (\S+?)\*\*", "\n".join(advice))[1]
    assert re.search(rf"{taken}: [^;]*", tuned)[0].rstrip(".") in third and third.count("worth it") == 1
    enlarging = next(line for line in advice if "SRGAN" in line)
    assert plain(enlarging).partition(":")[0][1:] in third
    # what was not run is said
    for file in [*woods.glob("finetune/*/*"), *woods.glob("zero_shot/*/*"), *woods.glob("*/woods-srgan/*")]:
        file.unlink(missing_ok=True)
    first, second, third = report.answer(plot.summarise(study(woods)))
    assert first == "**No labels:** not tried." and "not run" in third and "SRGAN: not run" in third


def test_what_a_cell_is_sorted_by():
    values = {
        "0.84 (0.79 to 0.87)": 0.84,
        "1,440": 1440,
        "1.2e+04": 12000,
        "toy-RN": None,
        "nan": None,
        "": None,
        "-0.5": -0.5,
        "3 dogs": None,
    }
    assert {text: report.number(text) for text in values} == values


def test_hostile_names_stay_text(woods):
    for file in woods.glob("*/*/*.json"):
        text = file.read_text()
        for name, evil in zip(CLASSES, EVIL):
            text = text.replace(json.dumps(name), json.dumps(evil))
        file.write_text(json.dumps(seal(json.loads(text), file)))
    listed = woods / "linear_probe/woods/m-best-suspects.csv"
    with open(listed, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        rows = [[f'{EVIL[i % 4]}/{i}".jpg', "train", EVIL[0], EVIL[1], "0.01", "0.9"] for i in range(30)]
        csv.writer(stream).writerows([["path", "split", "given", "likely", "p_given", "p_likely"], *rows])
    Image.new("RGB", (40, 40)).save(listed.with_suffix(".png"))
    text = made(probes_only(woods))[1]
    text.encode("utf-8")
    page = Page(text)
    assert len(page.all("script")) == 1 and all("onerror" not in attrs for _, attrs in page.tags) and not page.open
    shown = [name.replace("\udcff", "\\udcff") for name in EVIL]
    assert all(name in page.text["data"] for name in shown)
    table = next(t for t in page.tables if t[0][0] == "path")
    assert len(table) == 25 and [row[0] for row in table[1:5]] == [f'{name}/{i}".jpg' for i, name in enumerate(shown)]
    assert "the first 24 of 30" in page.text["labels-and-copies-to-look-at"]
    assert sum("Contact sheet" in img["alt"] for img in page.all("img")) == 1
    # the other list is missing: a sentence says how it is made
    assert page.text["labels-and-copies-to-look-at"].count("No list: python linear_probe.py --data woods") == 1


def test_many_large_pictures_keep_the_page_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size > 700_000
    text = report.figure(tmp_path / "noise.png", 'an "alt"', "words", 100_000)
    assert 40_000 < len(text) < 140_000 and 'alt="an &quot;alt&quot;"' in text
    (tmp_path / "half.png").write_bytes((tmp_path / "noise.png").read_bytes()[:9000])
    with pytest.raises(SystemExit):
        report.figure(tmp_path / "half.png", "", "", 100_000)


def test_calibration_is_told_where_it_was_measured(woods):
    _, text = made(probes_only(woods))
    assert "calibration" not in Page(text).text
    sets = {"coverage": 0.912, "size": 1.57, "per_class": {"ash": 0.95, EVIL[0]: 0.71}}
    said = {
        "temperature": 1.234,
        "ece": 0.021,
        "ece_before": 0.087,
        "brier": 0.3,
        "brier_before": 0.4,
        "alpha": 0.1,
        "lac": sets,
        "aps": sets,
    }
    bins = [[0.5, 0.4, 80], [0.9, 0.95, 80]]
    said |= {"reliability": bins, "reliability_before": bins, "reject": [[0.5, 0.99], [1.0, 0.8]]}
    probe = study(woods).one("linear_probe", "m-best")
    record = json.loads(probe.file.read_text())
    record["metrics"]["calibration"] = said
    probe.file.write_text(json.dumps(seal(record, probe.file)))
    page = Page(made(woods)[1])
    row = next(t for t in page.tables if "temperature" in t[0])[1]
    assert row == [
        "m-best",
        "linear probe",
        "1.234",
        "0.087",
        "0.021",
        "0.400",
        "0.300",
        "0.9",
        *["0.912", "1.57", f"0.71 ({EVIL[0]})"] * 2,
    ]


def test_how_it_was_made_and_what_cannot_be_concluded(woods):
    (woods / "linear_probe/woods/m-clip.json").unlink()  # whose zero-shot result is there
    s, text = made(probes_only(woods))
    page = Page(text)
    runs = next(t for t in page.tables if t[0][0] == "command")
    assert [row[0] for row in runs[1:]] == [run.record["command"] for run in s.runs]
    mistaken = next(t for t in page.tables if "taken for" in t[0])
    expected = [
        (r, c) for r in s.runs if r.script in ("zero_shot", "linear_probe") and r.upsampling == "bicubic" for c in r.metrics["confusions"]
    ]
    told = [[r.model, r.method, c["true"], c["predicted"], str(c["count"]), f"{c['share']:.0%}"] for r, c in expected]
    assert sorted(mistaken[1:]) == sorted(told) and len(told) == 9
    weights = next(t for t in page.tables if t[0][1] == "SHA-256")
    assert [row[:2] for row in weights[1:]] == [[m, f"sha of {m}"] for m in s.models]
    last = page.text["what-cannot-be-concluded"]
    assert all(plain(line) in last for line in plot.say_warnings(s, 160)) and "linear_probe/woods/m-clip.json" in last
    counts = next(t for t in page.tables if t[0][:2] == ["data", "split"])
    assert ["woods", "test", "160", "0"] in counts and ["woods-srgan", "test", "160", "0"] in counts


def test_one_line_where_there_is_nothing_and_the_file_where_there_is(woods, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(report.main, "--data", "nosuch")
    assert code == 2 and not out and err.count("\n") == 1 and "make all DATA=nosuch" in err
    probes_only(woods)
    code, out, err = call(report.main, "--data", "some/woods")
    assert code == 0 and not err and out.startswith("wrote results/woods.report.html: ")
    assert Page((tmp_path / "results/woods.report.html").read_text(encoding="utf-8")).all("h1")
