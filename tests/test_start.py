"""What a script imports before it has to: what starting costs, without a clock."""

import gc
import os
import platform
import re
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

import common

SCRIPTS = ("zero_shot", "prompts", "few_shot", "linear_probe", "finetune", "upsample", "plot", "toy")


def imported(script, *args, cwd="."):
    """The modules that a script imports, and its standard output."""
    tell = "import atexit, runpy, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); del sys.argv[0]"
    run = f"{tell}; sys.path[0] = {str(ROOT)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", run, str(ROOT / f"{script}.py"), *args]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    return {*done.stderr.split()}, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_that_takes_long(script):
    names, out = imported(script, "--help")
    assert "usage:" in out and "argparse" in names
    assert not {"numpy", "torch", "torchvision", "PIL", "matplotlib", "clip", "tqdm"} & names


@pytest.mark.parametrize(
    "program", [f"{script}.py" for script in SCRIPTS] + ["bench/stamp.py", "bench/estimate.py", "bench/speed.py", "bench/report.py"]
)
def test_what_make_starts_hears_ctrl_c_before_it_imports_what_takes_long(program):
    order = [match[1] for match in re.finditer(r"^ *(?:import|from) (\w+)", (ROOT / program).read_text(), re.MULTILINE)]
    ours = [i for i, name in enumerate(order) if name == "common" or name in SCRIPTS]
    assert not {"numpy", "torch", "torchvision", "PIL", "clip", "tqdm"} & {*order[: min(ours)]}


def test_clip_needs_no_torchvision_and_with_it_no_compiler_nor_does_an_optimizer(world):
    """The first decodes pictures and trains, the second computes, the third takes all from the cache."""
    data = ("--data", "tiny", "--model", "toy-ViT", "--out", "r.json")
    for script, more in (("finetune", ("--method", "cs", "--epochs", "1", "--batch", "8")), ("zero_shot", ()), ("zero_shot", ())):
        names, out = imported(script, *data, *more, cwd=world)
        assert "top-1" in out and "torch" in names
        assert not {"torchvision", "torch._dynamo", "matplotlib", "pkg_resources"} & names


def test_an_optimizer_without_the_compiler_is_still_adamw():
    common._import(common.torch)
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.3)
    m = v = 0
    for t in (1, 2):
        before, gradient = weight.detach().clone(), torch.tensor([0.5, t])
        weight.grad = gradient.clone()
        optimizer.step()
        assert weight.grad_fn is None and weight.requires_grad
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient.square()
        step = m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        torch.testing.assert_close(weight.detach(), before * (1 - 0.1 * 0.3) - 0.1 * step)
    other = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.1 and torch.equal(other.state_dict()["state"][0]["exp_avg"], m)
    optimizer.zero_grad()
    assert weight.grad is None


def test_a_module_is_imported_when_it_is_used_without_garbage_collection_or_time(tmp_path, monkeypatch):
    (tmp_path / "slow_module.py").write_text("import gc, time\ntime.sleep(0.3)\ncollected, answer = gc.isenabled(), 42\n")
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    slow, broken = common._Later("slow_module"), common._Later("broken_module")
    assert "slow_module" not in sys.modules
    began, clock = time.time(), common.clock()
    assert slow.answer == 42 and slow.collected is False and gc.isenabled()
    clock = common.clock() - clock
    assert time.time() - began - clock > 0.29  # the clock has stood still
    monkeypatch.setattr(slow, "answer", 43)  # what is used is the module itself
    assert slow.answer == sys.modules["slow_module"].answer == 43 and "answer" in dir(slow)
    with pytest.raises(AttributeError, match="slow_module"):
        slow.nothing  # noqa: B018
    with pytest.raises(ZeroDivisionError):
        broken.nothing  # noqa: B018
    assert gc.isenabled()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
@pytest.mark.parametrize("variables, kept", [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_memory_of_large_tensors_is_kept_for_the_next_ones(variables, kept):
    """A tensor of 80 MB lies where the heap grows for it and stays so large when it is gone; whoever has set how, is heard."""
    run = "import common, torch\n"
    run += "def heap():\n    line = next(line for line in open('/proc/self/maps') if '[heap]' in line)\n"
    run += "    start, end = line.split()[0].split('-')\n    return int(end, 16) - int(start, 16)\n"
    run += "torch.ones(8)\nbefore = heap()\ntorch.ones(20 * 2**20)\nprint(heap() - before)"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    done = subprocess.run([sys.executable, "-c", run], cwd=ROOT, capture_output=True, text=True, env=environ)
    assert (int(done.stdout) > 79 * 2**20) == kept, done.stderr
