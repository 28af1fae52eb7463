"""bench/beside.py on next to nothing: each part runs, beside peers that come to the same, and the page keeps what people wrote."""

import ctypes
import importlib.util
import platform

import pytest
import torch
from conftest import ROOT

spec = importlib.util.spec_from_file_location("beside", ROOT / "bench" / "beside.py")
beside = importlib.util.module_from_spec(spec)
spec.loader.exec_module(beside)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(beside, "REAL", None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# what starts processes of its own takes too long for a test
@pytest.mark.parametrize("part", [part for part in beside.GOALS if part not in ("start", "growth")])
def test_each_part_runs(part, tmp_path, call):
    page = tmp_path / "speed.md"
    page.write_text(f"written by hand\n\n{beside.HEADINGS['cpu']}\n\nof another day\n\n## By hand, too\n")
    code, out, _ = call(beside.main, "--quick", "--only", part, "--to", page)
    assert code == 0 and "not measured: nothing" in out, out
    text = page.read_text()
    assert text.endswith("\n\n## By hand, too\n")
    hand, _, measured = text.partition(beside.HEADINGS["cpu"])
    assert hand == "written by hand\n\n" and "of another day" not in measured
    _, _, *rows = [line for line in measured.splitlines() if line.startswith("|")]
    assert rows and len(rows) == out.count("; ratio ")
    for row in rows:
        *_, rounds, ratio, goal, held, _ = (cell.strip() for cell in row.split("|"))
        assert int(rounds) >= 1 and float(ratio) > 0
        wanted = float(goal[2:] or 0)
        assert held == ("" if not goal else "held" if (float(ratio) >= wanted) == (goal[0] == "≥") else "not held"), row


@pytest.mark.parametrize(
    "ratio, goal, better, shown, held",
    [
        (0.949, 0.95, max, "0.94", "not held"),
        (0.95, 0.95, max, "0.95", "held"),
        (1.104, 1.1, min, "1.11", "not held"),
        (1.1, 1.1, min, "1.10", "held"),
        (2.996, "", max, "3.00", ""),
    ],
)
def test_a_ratio_is_not_rounded_towards_its_goal(ratio, goal, better, shown, held):
    row = beside.row("this", "a", "b", ratio, goal, better)
    assert (row["ratio"], row["held"]) == (shown, held)


def test_a_part_that_fails_is_named_and_the_others_are_measured(call, monkeypatch):
    monkeypatch.setitem(beside.GOALS, "start", lambda args, folder: (_ for _ in [1 / 0]))
    code, out, _ = call(beside.main, "--quick", "--only", "start", "probe")
    assert code == 1 and "start: not measured: ZeroDivisionError" in out and "linear probe" in out


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_peers_have_memory_as_it_comes():
    class Info(ctypes.Structure):  # mallinfo of malloc.h, whose fourth field counts what is mapped
        _fields_ = [(f"field{i}", ctypes.c_int) for i in range(10)]

    def mapped():
        x = torch.empty(150 * 2**20)  # more than lies free in the heap; untouched it takes no memory
        return x.numel() and mallinfo().field3

    mallinfo = ctypes.CDLL(None).mallinfo
    mallinfo.restype = Info
    before = mallinfo().field3
    assert [beside.as_usual(mapped)(), mapped()] == [before + 1, before]


def test_peers_with_other_features_are_refused():
    x = torch.eye(3)
    beside.same(x, x + 0.01)
    with pytest.raises(RuntimeError, match="not the same features"):
        beside.same(x, x.flip(0))
