"""What the pages say: every command of theirs works or is named here with what it needs, links lead somewhere, numbers agree."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import check_claims
import pytest
import torch
import torchvision
from conftest import ROOT

import linear_probe
import plot
import toy
import upsample
from common import file_sha256

RESULTS = ROOT / "pics/README.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", RESULTS, *sorted((ROOT / "docs").glob("*.md"))]
BENCH = sorted((ROOT / "bench").glob("*.py"))

NETWORK, MINUTES, HOURS, CLIP = "downloads", "takes minutes", "takes minutes to hours on a CPU", "the weights of the real CLIP"
NEEDS_MORE = {  # commands that the tests do not run, and what they need; a script must understand its own all the same
    "python -m venv .venv": "makes an environment",
    ". .venv/bin/activate": "an environment",
    "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu": NETWORK,
    "pip install -r requirements.txt": NETWORK,
    "pip install -r tests/requirements.txt": NETWORK,
    "pip install -r requirements.txt -r tests/requirements.txt": NETWORK,
    "pip install kaggle": NETWORK,
    "kaggle datasets download moltean/fruits --unzip -p data/fruits360": NETWORK,
    "kaggle datasets download gpiosenka/100-bird-species --unzip -p data/birds": NETWORK,
    "kaggle datasets download gpiosenka/sports-classification --unzip -p data/sports": NETWORK,
    "kaggle datasets download alexattia/the-simpsons-characters-dataset --unzip -p data/simpsons": NETWORK,
    "python -m ruff format .": "changes files",
    "python -m pytest -q tests/test_few_shot.py": "is this very program",
    'python zero_shot.py --images cat.jpg --labels "a cat" "a dog"': CLIP,
    'python zero_shot.py --data ~/pictures/birds --model ViT-B/32 --prompts "a photo of a {}, a type of bird."': CLIP,
    "python zero_shot.py --data fruits360 --model ViT-B/32 --weights best.safetensors": CLIP,
    "python finetune.py --data fruits360 --model ViT-B/32 --method cs --save best.safetensors": CLIP,
    "python zero_shot.py --data torchvision:CIFAR10 --model ViT-B/32": NETWORK,
    "python finetune.py --load best.safetensors --predict a.jpg b.jpg": "what the command before it saves",
    "python finetune.py --data fruits360 --model mobilenet_v2 --head head.safetensors": HOURS,
    "python upsample.py train --data fruits360 --save sr.safetensors --blocks 8 --width 32 --epochs 6 --adversarial 3": HOURS,
    "python linear_probe.py --load head.safetensors --predict path/to/pictures": "what the command before it saves",
    "pip install open_clip_torch transformers": NETWORK,
    "pip install timm": NETWORK,
    "python linear_probe.py --data pictures --model timm:vit_small_patch14_dinov2.lvd142m": NETWORK,
    "python zero_shot.py --data pictures --model open_clip:ViT-B-16-SigLIP2/webli": NETWORK,
    "python zero_shot.py --data pictures --model open_clip:ViT-B-32-quickgelu --weights open_clip_model.safetensors": "weights of CLIP",
    "python bench/same.py before/results results": "results of before",
    "pip install atheris": NETWORK,
    "python bench/fuzz.py read_rgb --seconds 600 --seeds FOLDER": "another package",
    "python bench/beside.py --only few-shot": MINUTES,
    "python bench/distributed.py": MINUTES,
    "torchrun --nproc-per-node 2 finetune.py --data fruits360 --model ViT-B/32 --method cs": CLIP,
    "torchrun --nproc-per-node 2 linear_probe.py --data fruits360 --model ViT-B/32": CLIP,
    "python bench/coverage.py": MINUTES,
    "python bench/rounding.py worlds": MINUTES,
}


def commands(page):
    """What a page tells to type: each line of its fenced blocks but those of ```text, and `python ...`, `make ...` in the text."""
    text, found = page.read_text(encoding="utf-8"), []
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        lines = [re.sub(r"\s+#.*", "", line).strip() for line in block.splitlines() if not kind]
        found += [part for line in lines for part in line.split(" && ") if part]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return found + re.findall(r"`((?:python|pip|kaggle) [^`]*|make(?: [^`]*)?)`", prose)


COMMANDS = sorted({command for page in PAGES for command in commands(page)})


def form(command):
    """A command without the data, the encoder and the head that it names."""
    return re.sub(r" --(data|model|head) \S+", "", command)


# what people wrote, all of it; of the table in pics/, whose commands make has run, one of each form that is not among these
WRITTEN = {command for page in PAGES if page != RESULTS for command in commands(page)}
FORMS = {form(command): command for command in [*reversed(COMMANDS), *WRITTEN]}
RUN = [c for c in COMMANDS if c.startswith("python") and c not in NEEDS_MORE and c in (*WRITTEN, *FORMS.values())]
SLOW = [c for c in RUN if "--model mobilenet_v2" in c][1:]  # 224 px, for seconds
PARSED = [c for c in COMMANDS if re.match(r"python \S+\.py", c) and c not in RUN]


def main_of(file):
    """The main() of a script or of a program in bench/, some of which have the name of a script."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, ROOT / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny problems are faster on one thread, and much faster on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """What the commands find on a machine where make has run: here of four classes, and of random weights."""
    folder = tmp_path_factory.mktemp("made")
    toy.write_data(folder / "data/toy", toy.TOY[:4], train=12, test=8)
    for name in ("fruits360", "pictures", "birds", "sports"):
        (folder / "data" / name).symlink_to(folder / "data/toy")
    files = sorted((folder / "data/toy").rglob("*.jpg"))
    rows = [f"{f.relative_to(folder / 'data')},{f.parent.name},{f.parent.parent.name}" for f in files]
    (folder / "data/fruits.csv").write_text("\n".join(["path,label,split", *rows]), encoding="utf-8")
    shutil.make_archive(folder / "data/fruits", "zip", folder / "data/toy")
    (folder / "data/flat").mkdir()
    for f in files:
        shutil.copy(f, folder / "data/flat" / f"{f.parent.name.replace(' ', '_')}_{f.name}")
    shutil.copytree(tiny / "weights", folder / "weights")
    (folder / "torch/hub/checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v2().state_dict(), folder / "w.pth")
    os.replace(folder / "w.pth", folder / f"torch/hub/checkpoints/mobilenet_v2-{file_sha256(folder / 'w.pth')[:8]}.pth")
    srgan = "weights/srgan-toy.safetensors"
    commands = [
        (upsample, f"train --data toy --save {srgan} --blocks 1 --width 4 --epochs 1 --adversarial 1"),
        (upsample, f"apply --data toy --weights {srgan}"),
    ]
    for data in ("toy", "pictures", "birds"):
        place = f"results/linear_probe/{data}/toy-RN"
        commands.append((linear_probe, f"--data {data} --model toy-RN --save {place}.safetensors --out {place}.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for script, words in commands:
            patch.setattr("sys.argv", [f"{script.__name__}.py", *words.split()])
            script.main()
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """An empty current folder, also the home, that sees all this; what a command writes stays in it."""
    for part in ("data", "weights"):
        (tmp_path / part).mkdir()
        for file in (made / part).iterdir():
            (tmp_path / part / file.name).symlink_to(file)
    (tmp_path / "results").symlink_to(made / "results")
    (tmp_path / "path/to").mkdir(parents=True)
    (tmp_path / "path/to/pictures").symlink_to(made / "data/pictures")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(made / "torch"))
    few = (100, *torchvision.datasets.FakeData.__init__.__defaults__[1:])  # pictures, of 1,000
    monkeypatch.setattr(torchvision.datasets.FakeData.__init__, "__defaults__", few)
    (file,) = (made / "torch/hub/checkpoints").iterdir()
    monkeypatch.setattr(torchvision.models.get_model_weights("mobilenet_v2").DEFAULT.value, "url", f"https://none/{file.name}")
    return tmp_path


@pytest.mark.parametrize("command", [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in RUN])
def test_a_command_of_the_pages_runs(command, here, call):
    _, script, *words = map(os.path.expanduser, shlex.split(command))
    code, _, err = call(main_of(script), *words)
    assert code == 0, err


@pytest.mark.parametrize("command", PARSED)
def test_a_command_that_is_not_run_is_understood_by_its_script(command, tmp_path, monkeypatch, call):
    """With a flag that no script has, it fails for that one alone: all others are known, and their values legal."""
    monkeypatch.chdir(tmp_path)
    _, script, *words = shlex.split(command)
    code, _, err = call(main_of(script), *words, "--no-such-flag")
    assert code == 2 and err.endswith("error: unrecognized arguments: --no-such-flag\n")


def test_what_needs_more_is_on_a_page_and_nothing_else_is_left_out():
    assert not {*NEEDS_MORE} - {*COMMANDS}
    rest = [c for c in COMMANDS if c not in NEEDS_MORE and not re.match(r"make\b|python \S+\.py\b", c)]
    assert not rest and len(RUN) > 20
    for command in (c for c in NEEDS_MORE if " -r " in c):
        assert all((ROOT / file).is_file() for file in re.findall(r"-r (\S+)", command))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_knows_the_make_commands(command, tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.txt", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(f"make -n{command.removeprefix('make')}", shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout and "warning" not in done.stderr, done.stderr
    variables = re.findall(r"^ *(\w+) *\??=", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {*re.findall(r" ([A-Z]+)=", command)} <= {*variables}  # make takes any others without a word


@pytest.mark.parametrize("file", BENCH, ids=lambda file: file.stem)
def test_each_program_in_bench_starts(file, call):
    code, out, _ = call(main_of(file), "--help")
    assert code == 0 and "usage" in out


def anchors(page):
    """What GitHub makes of the headings of a page."""
    return {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in page.read_text().splitlines() if line[:1] == "#"
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if "://" not in target:
            assert (page.parent / path).exists(), target
            assert not anchor or anchor in anchors(page.parent / path if path else page), target


def test_the_readme_is_short_and_links_every_page():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert 80 <= len(readme.splitlines()) <= 130
    assert all(f"]({page.relative_to(ROOT).as_posix()})" in readme for page in PAGES[1:])


@pytest.fixture(scope="module")
def summary():
    return json.loads((ROOT / "pics/summary.json").read_text(encoding="utf-8"))


def test_the_page_of_results_is_what_plot_makes_of_its_summary(summary):
    assert RESULTS.read_text(encoding="utf-8") == plot.render(summary)
    pictures = [path.name for path in (ROOT / "pics").iterdir() if path.suffix == ".png"]
    assert sorted(summary["figures"]) == sorted(pictures)
    assert sum((ROOT / "pics" / name).stat().st_size for name in pictures) < 1_500_000


def test_the_readmes_conclusions_are_those_of_the_summary(summary):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert check_claims.told(readme) == check_claims.conclusions(summary)
    words = {tuple(row[:2]): row[5] for row in summary["reasons"]}
    cannot = words["All labels, encoder fine-tuned", "toy-RN"] == "cannot be told"
    assert ("cannot tell apart" in " ".join(readme.split())) == cannot
    counts = summary["data"]["counts"]
    assert f"{counts['train']:,} training and {counts['test']:,} test images" in readme
