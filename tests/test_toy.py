"""The toy world: what it promises, and that it is the same each time."""

import os

import clip
import numpy as np
import pytest
import torch
from PIL import Image

import toy


def test_the_world_is_what_the_study_needs():
    assert len(toy.TOY) == len(set(toy.TOY)) >= 24
    assert len(set(toy.TOY) - set(toy.PRETRAINED)) >= 16
    # yet every colour and every shape of it is known
    assert {w for n in toy.TOY for w in n.split()} <= {w for n in toy.PRETRAINED for w in n.split()}
    assert len(set(toy.TEMPLATES)) >= 20 and len(set(toy.HELD_OUT)) >= 5 and not set(toy.TEMPLATES) & set(toy.HELD_OUT)


def test_captions_are_true():
    allowed = toy.true_templates([{"small", "dark"}, {"large"}, set()])
    said = [{t for t, ok in zip(toy.TEMPLATES, row) if ok} for row in allowed]
    assert "a photo of a small {}." in said[0] and "a dark photo of a {}." in said[0] and "a photo of a large {}." not in said[0]
    assert "a dark photo of a large {}." not in said[1] and "a photo of a large {}." in said[1]
    assert said[2] == {t for t in toy.TEMPLATES if not any(w in t for w in toy.TRAITS)}
    # every trait that a template names does occur, and shows: dark pictures are darker
    drawn = toy.draw_many(toy.TOY * 8, True, 0)
    assert {t for _, traits in drawn for t in traits} == set(toy.TRAITS)
    dark, bright = (np.mean([p.mean() for p, traits in drawn if t in traits]) for t in ("dark", "bright"))
    assert dark < 0.6 * bright


def test_drawing_depends_on_seed_and_number_only():
    first = toy.draw_many(["red apple", "blue fig", "green pear"], False, 3)
    again = [toy.draw_numbered(3, i, n, False) for i, n in enumerate(["red apple", "blue fig", "green pear"])]
    assert all((a[0] == b[0]).all() and a[1] == b[1] for a, b in zip(first, again))
    assert (toy.draw_numbered(4, 0, "red apple", False)[0] != first[0][0]).any()
    assert first[0][0].shape == (32, 32, 3) and toy.draw_numbered(0, 0, "red apple", True)[0].shape == (64, 64, 3)


def test_data_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    toy.write_data(tmp_path / "d", ["red apple", "blue fig"], train=3, test=2)
    files = sorted(p.relative_to(tmp_path / "d").as_posix() for p in (tmp_path / "d").rglob("*.jpg"))
    assert len(files) == 10 and files[0] == "Test/blue fig/3.jpg" and files[-1] == "Training/red apple/2.jpg"
    assert Image.open(tmp_path / "d" / files[0]).size == (32, 32)
    save, calls = Image.Image.save, []

    def stop(self, *args, **named):
        calls.append(0)
        if len(calls) > 4:
            raise KeyboardInterrupt
        save(self, *args, **named)

    monkeypatch.setattr(Image.Image, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        toy.write_data(tmp_path / "e", ["red apple", "blue fig"], train=3, test=2)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize("name", ["toy-ViT", "toy-RN", "toy-imagenet"])
def test_pretraining_is_deterministic_and_clip_load_accepts_it(name, tmp_path):
    names = toy.PRETRAINED[:64]
    images, traits = zip(*toy.draw_many(names, True, 1))
    first, second = (toy.pretrain(name, np.stack(images), traits, names, 2, 1e-3, batch=32) for _ in range(2))
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first[max(first)], toy.pretrain(name, np.stack(images), traits, names, 2, 1e-3, seed=1, batch=32)[max(first)])
    if name == "toy-imagenet":
        return
    torch.save(first, tmp_path / "w.pt")
    net, preprocess = clip.load(str(tmp_path / "w.pt"), device="cpu")
    assert net.visual.input_resolution == 64 and all(torch.equal(v, first[k].to(v)) for k, v in net.state_dict().items())


def test_main_makes_only_what_is_missing(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(tiny / "weights")
    (tmp_path / "data" / "toy").mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["toy.py"])
    toy.main()
    assert not os.listdir(tmp_path / "data" / "toy") and capsys.readouterr().out == ""
