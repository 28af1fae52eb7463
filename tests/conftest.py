"""A tiny toy world for the tests: 4 classes of 8 + 8 images and encoders with random weights, from toy.py's own functions."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the network fails at once
for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # make may run the tests, and they run make
    os.environ.pop(name, None)

import toy
from common import load_model

# where a shell starts the tests in the background Ctrl-C is ignored, by all that they start too, and its tests would try nothing
signal.signal(signal.SIGINT, signal.default_int_handler)


def random_weights(name, seed=0):
    """State dict of an untrained toy encoder, float16 like the trained ones; batch-norm statistics as if it had run.

    Without those of its own activations an untrained ResNet gives all pictures the same features.
    """
    torch.manual_seed(seed)
    net = toy.network(name)
    visual = getattr(net, "visual", net)
    for module in visual.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what it sees
    blots = torch.nn.functional.interpolate(torch.randn(64, 3, 5, 5), size=visual.input_resolution, mode="bicubic")
    with torch.no_grad():
        visual.train()(blots)
    return toy.compact(net.state_dict())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with data/tiny and weights/toy-*.pt."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "weights").mkdir()
    (folder / "data").mkdir()
    toy.write_data(folder / "data" / "tiny", toy.TOY[:4], train=8, test=8)
    for name, *_ in toy.PLANS:
        torch.save(random_weights(name), folder / "weights" / f"{name}.pt")
    return folder


@pytest.fixture(scope="session")
def trained_toys(tmp_path_factory):
    """A folder with toy-ViT and toy-RN after seconds of training, and data/drawn: 8 classes of 6 test images."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "weights").mkdir()
    (folder / "data").mkdir()
    toy.write_data(folder / "data" / "drawn", toy.TOY[:16:2], train=2, test=6)
    names = toy.PRETRAINED * 5
    images, traits = zip(*toy.draw_many(names, True, seed=5))
    for name in ("toy-ViT", "toy-RN"):
        torch.save(toy.pretrain(name, np.stack(images), traits, names, 3, 1e-3), folder / "weights" / f"{name}.pt")
    return folder


@pytest.fixture
def world(tiny, tmp_path, monkeypatch):
    """An empty current folder that sees the tiny data and weights."""
    for name in ("data", "weights"):
        (tmp_path / name).symlink_to(tiny / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def real():
    """The folder of real images, $REAL_DATA."""
    if not os.environ.get("REAL_DATA"):
        pytest.skip("REAL_DATA is unset")
    return Path(os.environ["REAL_DATA"])


def refused(capsys, *args, **named):
    """The line with which load_model refuses its arguments."""
    with pytest.raises(SystemExit) as end:
        load_model(*args, **named)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    return error


def run(*command, cwd=".", script_folder=ROOT):
    """Run a script as a user does; returns the finished process with its text output."""
    command = [sys.executable, str(Path(script_folder) / command[0]), *map(str, command[1:])]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a script's main() in this process, in the current folder: (exit code, stdout, stderr). Saves seconds of imports."""

    def call(main, *args):
        monkeypatch.setattr(sys, "argv", [f"{main.__module__}.py", *map(str, args)])
        capsys.readouterr()
        try:
            code = main() or 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return call


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: left out by make test, run by make test-faults")
    config.addinivalue_line("markers", "gpu: left out where there is none")


def pytest_collection_modifyitems(config, items):
    if not torch.cuda.is_available() and (absent := [item for item in items if item.get_closest_marker("gpu")]):
        config.hook.pytest_deselected(items=absent)
        items[:] = [item for item in items if item not in absent]


def pytest_terminal_summary(terminalreporter, config):
    if os.environ.get("REAL_DATA") and terminalreporter.stats.get("skipped"):
        terminalreporter.write_line("REAL_DATA is set: a skipped test counts as a failure")


def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("REAL_DATA") and reporter.stats.get("skipped") and exitstatus == 0:
        session.exitstatus = 1
