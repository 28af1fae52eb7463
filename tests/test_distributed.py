"""Several processes on the CPU: they follow one process, deal features among them, go on with another number, and end together."""

import multiprocessing
import os
import shutil
import sys
import time
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import distributed as dist, nn

import common
import finetune
import linear_probe
from common import fit, half_epochs


def rank_of(work, folder, number, count, port, command):
    """What each of the processes runs: work() in the folder, as torchrun would start it; what it says goes to files there."""
    os.chdir(folder)
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        stream.flush()
        os.dup2(os.open(f"{name}{number}.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), {"out": 1, "err": 2}[name])
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    torch.set_num_threads(1)
    sys.argv = [f"{work.__module__}.py", *map(str, command)]
    try:
        work()
    except BaseException as error:
        if not isinstance(error, SystemExit):
            sys.excepthook(type(error), error, error.__traceback__)
        sys.stderr.flush()
        os._exit(error.code or 0 if isinstance(error, SystemExit) else 1)
    finally:
        sys.stdout.flush()


@pytest.fixture(scope="module")
def context():
    """Processes that start from one that has imported everything, which takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_distributed"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # it would not find it otherwise
        forkserver.ensure_running()
    return context


@pytest.fixture
def start(context, tmp_path):
    """Start `count` processes of work(): [exit code, stdout, stderr] of each; a limit of 60 s, then they are killed."""

    def start(work, *command, count=2, folder=".", limit=60):
        store = dist.TCPStore("127.0.0.1", 0, is_master=True)  # as torchrun keeps one
        folder = os.path.abspath(folder)
        ranks = [context.Process(target=rank_of, args=(work, folder, i, count, store.port, command)) for i in range(count)]
        for rank in ranks:
            rank.start()
        end = time.time() + limit
        for rank in ranks:
            rank.join(max(0, end - time.time()))
            rank.kill()
            rank.join()
        told = [[Path(folder, f"{name}{i}.txt").read_text() for name in ("out", "err")] for i in range(count)]
        return [[rank.exitcode, *texts] for rank, texts in zip(ranks, told)]

    return start


# ---- the loop ---------------------------------------------------------------------------------------------------------

X, Y = torch.randn(40, 6, generator=torch.Generator().manual_seed(2)).double(), torch.arange(40) % 3
WEIGHTS = 0.5 + torch.arange(40) % 5  # of the images in the loss
CPU = common.Model("toy", None, None, 6, (0,) * 3, (1,) * 3, 6, "", torch.device("cpu"), torch.float32)


class Net(nn.Module):
    """Its batch norm keeps its statistics, as in finetune.py, and one of its parameters is not used."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
        self.unused = nn.Parameter(torch.ones(2))

    def train(self, mode=True):
        return super().train(False)

    def forward(self, x):
        return self.net(x)


def train(stop=None):
    """Four legs of batches of 14, 13 and 13 images, whose parts are unequal; cut off after so many. Writes what it has come to."""
    common._join_ranks()
    net, seen = Net(), []
    together = common.parallel(net)

    def step(batch):
        x, y, w = batch
        logits = together(x)
        return (F.cross_entropy(logits, y, reduction="none") * w).sum() / w.sum(), (logits.argmax(1) == y).double().mean()

    def validate():
        if len(seen) == stop:
            raise SystemExit(3)
        seen.append(0)
        return torch.cat(common.dealt(lambda i: (net(X[i]).argmax(1) == Y[i]).double(), list, [[i] for i in range(len(X))])).mean().item()

    legs = half_epochs(lambda rows, epoch: (X[rows], Y[rows], WEIGHTS[rows]), len(X), 14, 2, 0, WEIGHTS)
    history, best = fit(net, torch.optim.AdamW(net.parameters(), 0.01), legs, step, validate, CPU, "c.ckpt", {"lr": 0.01})
    if not common._RANK:
        torch.save((history, best, net.state_dict()), "result.pt")


def cut_off():
    train(3)


def equal(here, there):
    """Whether two runs came to the same, but for the rounding of sums in another order."""
    for a, b in zip(here[0], there[0], strict=True):
        assert [a[key] for key in ("epoch", "step", "lr")] == [b[key] for key in ("epoch", "step", "lr")]
        assert all(a[key] == pytest.approx(b[key], abs=1e-6) for key in ("train", "val", "loss"))  # totals are kept in float32
    for a, b in zip(here[1:], there[1:]):
        assert all(torch.allclose(a[key], b[key], atol=1e-9) for key in a)


def test_ranks_follow_one_process_and_go_on_from_each_others_checkpoints(start, tmp_path, monkeypatch):
    for name in ("one", "two", "there", "back"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    train()
    one = torch.load("result.pt")
    assert not torch.equal(one[2]["net.0.weight"], Net().state_dict()["net.0.weight"])
    assert start(train, folder="../two") == [[0, "", ""]] * 2
    equal(torch.load("../two/result.pt"), one)

    assert [code for code, *_ in start(cut_off, folder="../there")] == [3, 3]
    os.chdir("../there")
    assert len(torch.load("c.ckpt")["history"]) == 3
    train()
    equal(torch.load("result.pt"), one)

    os.chdir("../back")
    with pytest.raises(SystemExit):
        cut_off()
    assert start(train, count=3) == [[0, "goes on from c.ckpt, step 3 of 6\n", ""], [0, "", ""], [0, "", ""]]
    equal(torch.load("result.pt"), one)


# ---- scripts ------------------------------------------------------------------------------------------------------------


def probe():
    common._CHUNK = 5
    linear_probe.main()


def features():
    return {path: np.load(path)["x"] for path in sorted(Path("cache/features").rglob("*.npz"))}


@pytest.mark.slow
def test_features_are_dealt_and_equal(start, world, call, monkeypatch):
    """Bit for bit those of one process; what is damaged or absent is made anew; the first rank alone speaks and writes."""
    monkeypatch.setattr(common, "_CHUNK", 5)
    command = ["--data", "tiny", "--model", "toy-RN", "--device", "cpu", "--batch", 2]
    code, said, _ = call(linear_probe.main, *command, "--out", "one.json")
    one = features()
    assert code == 0 and len(one) == 14
    shutil.rmtree("cache")
    assert start(probe, *command, "--out", "two.json") == [[0, said.replace("one.json", "two.json"), ""], [0, "", ""]]
    assert features().keys() == one.keys() and all(np.array_equal(x, one[path]) for path, x in features().items())
    first, second, *_ = one
    first.write_bytes(b"damaged")
    second.unlink()
    (code, again, error), silent = start(probe, *command, "--out", "two.json")
    assert (code, error, silent) == (0, "", [0, "", ""]) and again.count("is damaged") == 1
    assert all(np.array_equal(x, one[path]) for path, x in features().items())
    (record, arrays), (other, others) = (common.read_result(Path(f"{name}.json")) for name in ("one", "two"))
    assert record["metrics"] == other["metrics"] and all(np.array_equal(arrays[key], others[key]) for key in arrays)
    assert "ranks" not in record["environment"] and other["environment"]["ranks"] == 2


def test_finetune_follows(start, world, call):
    """Also with classes of other sizes and weights, and batches that cannot be halved."""
    shutil.copytree("data/tiny", "own")
    for file in sorted(Path("own/Training").glob("*/*"))[:5]:
        file.unlink()
    command = [
        "--data",
        "./own",
        "--model",
        "toy-RN",
        "--device",
        "cpu",
        "--precision",
        "float32",
        "--epochs",
        2,
        "--batch",
        7,
        "--balance",
    ]
    code, said, _ = call(finetune.main, *command, "--out", "one.json")
    two, *silent = start(finetune.main, *command, "--out", "two.json", "--save", "two.safetensors")
    assert code == two[0] == 0 and two[2] == "" and silent == [[0, "", ""]] and len(two[1].splitlines()) == len(said.splitlines()) + 1
    records = [common.read_result(Path(f"{name}.json"))[0] for name in ("one", "two")]
    for a, b in zip(*(record["history"] for record in records)):
        assert all(a.get(key) == b.get(key) for key in ("seed", "step", "val", "alpha"))
        assert all(a[key] == pytest.approx(b[key], rel=1e-3) for key in ("loss", "train") if a.get(key))
    assert records[0]["metrics"]["confusions"] == records[1]["metrics"]["confusions"]
    assert Path("two.safetensors").exists() and not list(Path().rglob("*.ckpt"))


# ---- ends ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, line",
    [
        pytest.param(["--lr", "5"], "--lr and --head-lr must lie in 0 to 1", marks=pytest.mark.slow),
        (["--data", "nowhere"], "nowhere"),
        pytest.param(["--batch", 8, "--train-bn"], "leave out --train-bn", marks=pytest.mark.slow),
        pytest.param(["--batch", 1], "--batch 1: leaves some of 2 processes without an image", marks=pytest.mark.slow),
    ],
)
def test_all_end_with_one_line(start, world, flags, line):
    ends = start(finetune.main, "--data", "tiny", "--model", "toy-RN", "--device", "cpu", *flags)
    assert 2 in (codes := [code for code, *_ in ends]) and all(codes)
    said = "".join(error for *_, error in ends)
    assert line in said and said.count("\n") == 1 and said.startswith("finetune.py: ")


def stopped():
    common._PATIENCE = timedelta(seconds=2)
    common._join_ranks()
    while common._RANK and not Path("err0.txt").read_text():
        time.sleep(0.1)
    common.dealt(torch.ones, int, range(4))


def test_a_rank_that_does_not_answer_ends_the_others(start, tmp_path):
    first, second = start(stopped, folder=tmp_path)
    assert first[0] == second[0] == 1 and first[2].count("\n") == 2 and second[1:] == ["", ""]
    assert "another process of this run has ended, or does not answer" in first[2] and "run it again" in first[2]
