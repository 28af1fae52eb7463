"""Records and files of weights: one writer, one reader, and nothing else is taken for them; bench/same.py, which compares records."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file

import common
import few_shot
import zero_shot

sys.path.insert(0, str(ROOT / "bench"))
import same


def refused(capsys, work):
    with pytest.raises(SystemExit) as end:
        work()
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    return error


def test_a_record_is_read_as_it_was_written_and_one_of_another_format_says_how_to_make_it_anew(world, call, capsys):
    args = ("--data", "tiny", "--model", "toy-RN")
    assert call(zero_shot.main, *args, "--out", "z.json")[0] == 0
    record, arrays = common.read_result("z.json")
    (row,) = record["table"]
    assert row["method"] == "zero-shot" and row["labels"] == row["labels_used"] == 0
    assert row["accuracy"] == record["metrics"]["top1"] and row["ci95"] == record["metrics"]["top1_ci95"]
    assert arrays["right"].shape == (1, 1, 32) and (arrays["right"][0, 0] == (arrays["true"] == arrays["predicted"])).all()
    assert "began" not in record["args"] and record["args"]["prompts"] == ["a photo of a {}."]
    assert call(few_shot.main, *args, "--shots", "2", "--seeds", "2", "--out", "f.json")[0] == 0
    record, arrays = common.read_result("f.json")
    assert len(record["table"]) == len(arrays["right"]) == 4 * 2  # methods, and 2 labels or all
    for other in ({"format": 1}, {"format": None}):
        (world / "old.json").write_text(json.dumps(json.loads((world / "z.json").read_text()) | other))
        error = refused(capsys, lambda: common.read_result("old.json"))
        assert "old.json" in error and "make it anew: python zero_shot.py --data tiny --model toy-RN --out z.json" in error


def test_weights_are_written_in_the_same_bytes_and_read_as_they_were(world, capsys):
    tensors = {"b": torch.randn(3, 4), "a": torch.arange(5)}
    told = {"classes": ["x", "ü"], "labels_used": 7, "nested": {"steps": [1, 2]}}
    common.save_weights("w.safetensors", tensors, told)
    first = (world / "w.safetensors").read_bytes()
    common.save_weights("w.safetensors", dict(reversed(tensors.items())), told)
    assert (world / "w.safetensors").read_bytes() == first
    about, found = common.read_weights("w.safetensors")
    assert about == {"format": common.FORMAT, **told} and all(torch.equal(found[name], tensors[name]) for name in tensors)
    save_file(tensors, "others.safetensors", {"format": "pt"})  # as everybody writes them
    assert common.read_weights("others.safetensors")[0] == {}
    for strings in ({"classes": "[]"}, {"about": json.dumps({"format": 1})}):
        save_file(tensors, "old.safetensors", strings)
        assert "old.safetensors: of an older format" in refused(capsys, lambda: common.read_weights("old.safetensors"))


def test_two_folders_of_results_are_compared_bit_by_bit(tmp_path, call):
    record = {"metrics": {"top1": 0.1 + 0.2, "old": {"k": [1, None]}}, "seconds": 1.0, "environment": {"code": "a"}}
    for name, change in (
        ("a", {}),
        ("b", {"seconds": 9.0, "environment": {"code": "b"}}),
        ("c", {"metrics": {"top1": 0.3, "new": {"k": [1, None]}}}),
    ):
        (tmp_path / name / "x").mkdir(parents=True)
        (tmp_path / name / "x/r.json").write_text(json.dumps(record | change))
        np.savez(tmp_path / name / "x/r.npz", right=np.arange(6, dtype=np.uint8).reshape(2, 3) + (name == "c"))
    a, b, c = (tmp_path / name for name in "abc")
    code, out, _ = call(same.main, a, b)
    assert code == 0 and out == "2 files, 4 values and arrays, 0 differ\n"
    code, out, _ = call(same.main, a, c)
    assert code == 1 and "top1: 0.30000000000000004 -> 0.3" in out and out.endswith("2 files, 4 values and arrays, 4 differ\n")
    code, out, _ = call(same.main, a, c, "--renamed", "metrics.old=metrics.new", "--dropped", "npz.right", "metrics.top1")
    assert code == 0, out
    (b / "x/r.npz").unlink()
    assert "x/r.npz: missing" in call(same.main, a, b)[1]
