"""finetune.py and common.fit: the warp against torchvision, the loop against a plain one, and runs that are cut off."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import clip
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, random_weights, run
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torchvision.transforms import InterpolationMode, functional as TF

import common
import finetune
import linear_probe
import toy
import zero_shot
from common import fit, half_epochs, load_data, load_model, read_weights, save_weights, snapshot

# ---- augmentation ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture():
    """uint8 (1, 3, 48, 48) of smooth noise, so that half a pixel more or less makes a small difference."""
    small = torch.randint(0, 256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    return F.interpolate(small, size=48, mode="bicubic").clamp(0, 255).to(torch.uint8)


def border_median(x):
    ring = np.ones(x.shape[2:], bool)
    ring[1:-1, 1:-1] = False
    return [float(np.sort(c[ring])[(ring.sum() - 1) // 2]) for c in x[0].numpy()]  # of two in the middle the lower one


def seen(x, matrix, size=48):
    return finetune.warp(x, torch.from_numpy(np.float32(matrix)), size, "bilinear")


def compare(ours, theirs, picture):
    """Equal to a torchvision function wherever a pixel is not half outside: there torchvision counts the inner half twice."""
    part = theirs(torch.ones_like(picture, dtype=torch.float), [0.0] * 3)
    sure = (part < 1e-6) | (part > 0.999)
    theirs = theirs(picture.float(), border_median(picture))
    assert sure.float().mean() > 0.9 and (ours - theirs)[sure].abs().max() < 0.1


def test_flip_is_torchvisions(picture):
    assert torch.allclose(seen(picture, finetune.flips(np.array([-1.0]))), TF.hflip(picture).float(), atol=0.01)
    assert torch.allclose(seen(picture, finetune.flips(np.array([1.0]))), picture.float(), atol=0.01)


@pytest.mark.parametrize("degrees", [-20, 7, 90])
def test_rotation_is_torchvisions(picture, degrees):
    ours = seen(picture, finetune.rotations(np.array([degrees], float)))
    compare(ours, lambda x, fill: TF.rotate(x, degrees, InterpolationMode.BILINEAR, fill=fill), picture)


def test_perspective_is_torchvisions(picture):
    corners = np.array([[-0.8, -0.9], [0.6, -1], [0.9, 0.7], [-1, 0.5]])
    ends = ((corners + 1) / 2 * 48).tolist()
    starts = [[0, 0], [48, 0], [48, 48], [0, 48]]  # torchvision counts from the upper left edge, as its pixel centres at .5 show
    ours = seen(picture, finetune.perspectives(corners[None]))
    compare(ours, lambda x, fill: TF.perspective(x, starts, ends, InterpolationMode.BILINEAR, fill=fill), picture)
    assert ours[0, :, 0, 0].tolist() == pytest.approx(border_median(picture))  # part of it lies outside


@pytest.mark.parametrize("sigma", [0.3, 2.0])
def test_blur_is_torchvisions(picture, sigma):
    theirs = TF.gaussian_blur(picture.float(), 13, sigma)
    both = finetune.blur(picture.float().repeat(2, 1, 1, 1), torch.tensor([sigma, 1e-3]), 6)
    assert torch.allclose(both[0], theirs[0], atol=0.01) and torch.allclose(both[1], picture[0].float(), atol=0.01)


def test_one_warp_is_the_three_after_each_other(picture):
    """The composed matrices do what flip, then rotation, then perspective do, up to what sampling three times blurs."""
    matrices, _ = finetune.draw_augmentation(3, 1, 40)
    u = np.random.default_rng([3, 1, 1]).random((40, 12))
    row = next(i for i in range(40) if u[i, 0] < 0.5 and u[i, 2] < 0.5 and abs(u[i, 1] - 0.5) > 0.3)
    reach = finetune.BEND * u[row, 3:11].reshape(4, 2)
    x = seen(picture, finetune.flips(np.array([-1.0])))
    x = seen(x, finetune.rotations(np.array([(2 * u[row, 1] - 1) * 20])))
    x = seen(x, finetune.perspectives((finetune.CORNERS * (1 - reach))[None]))
    difference = (seen(picture, matrices[row : row + 1]) - x).abs()  # sampled three times it is softer, most at its edges
    assert difference.median() < 3 and difference.mean() < 8


def test_upsampling_is_part_of_the_warp(picture):
    eye = np.eye(3)[None]
    theirs = F.interpolate(picture.float(), size=96, mode="bilinear", align_corners=False)
    assert torch.allclose(seen(picture, eye, 96)[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2], atol=0.05)
    cubic = finetune.warp(picture, torch.from_numpy(np.float32(eye)), 96)
    theirs = F.interpolate(picture.float(), size=96, mode="bicubic", align_corners=False).clamp(0, 255)
    assert torch.allclose(cubic[..., 4:-4, 4:-4], theirs[..., 4:-4, 4:-4], atol=0.05)


def test_white_background_stays_white():
    x = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    x[:, :, 12:20, 12:20] = 90
    matrices, sigmas = finetune.draw_augmentation(0, 0, 2)
    out = finetune.augment(x, torch.from_numpy(matrices), torch.tensor([0]), torch.tensor([0.009]), 64)
    edges = torch.cat([out[..., 0, :], out[..., -1, :], out[..., 0], out[..., -1]], -1)
    assert out.shape == (2, 3, 64, 64) and (edges > 254.9).all() and out.min() < 120
    none = finetune.augment(x, torch.from_numpy(matrices), torch.tensor([], dtype=torch.long), torch.tensor([]), 64)
    assert torch.equal(none[1], out[1]) and not torch.equal(none[0], out[0])


def test_augmentation_is_a_function_of_seed_epoch_and_image():
    matrices, sigmas = finetune.draw_augmentation(1, 2, 50)
    again = finetune.draw_augmentation(1, 2, 50)
    assert (matrices == again[0]).all() and (sigmas == again[1]).all()
    for other in ((1, 3), (2, 2)):
        assert not (finetune.draw_augmentation(*other, 50)[0] == matrices).all((1, 2)).any()
    assert len({m.tobytes() for m in matrices}) == 50
    many, sigmas = finetune.draw_augmentation(0, 0, 4000)
    assert 0.45 < (np.linalg.det(many) < 0).mean() < 0.55 and 0.45 < (sigmas > 0).mean() < 0.55
    assert sigmas.min() >= 0 and 0.95 * finetune.SIGMA < sigmas.max() <= finetune.SIGMA
    plain = many[np.abs(many[:, 2, :2]).max(1) == 0]  # without perspective
    turned = np.degrees(np.arctan2(plain[:, 1, 0] * np.sign(np.linalg.det(plain)), plain[:, 1, 1]))
    assert 1800 < len(plain) < 2200 and 19 < np.abs(turned).max() <= 20.01


# ---- the loop -------------------------------------------------------------------------------------------------------


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.visual = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.visual(x))


X, Y = torch.randn(40, 6, generator=torch.Generator().manual_seed(2)), torch.arange(40) % 3


CPU = common.Model("toy", None, None, 6, (0,) * 3, (1,) * 3, 6, "", torch.device("cpu"), torch.float32)


def optimizer_of(net):
    return torch.optim.AdamW(finetune.parameter_groups(net, 0.01, 0.1, 0.3), fused=True)


def train(net, epochs=2, validate=None, step=None, **options):
    def plain_step(batch):
        x, y = batch
        logits = net(x)
        return F.cross_entropy(logits, y), (logits.argmax(1) == y).float().mean()

    rising = iter(range(1000))
    torch.manual_seed(0)
    legs = half_epochs(lambda rows, epoch: (X[rows], Y[rows]), len(X), 16, epochs, seed=0)
    return fit(net, optimizer_of(net), legs, step or plain_step, validate or (lambda: next(rising)), CPU, **options)


def test_every_step_is_that_of_a_plain_loop():
    """Schedule, clipping and decay written out once more; batches are taken from what `load` was asked for."""
    net, plain, asked = Toy(), Toy(), []
    load = lambda rows, epoch: (asked.append((epoch, rows)), (X[rows], Y[rows]))[1]  # noqa: E731

    def step(batch):
        logits = net(batch[0])
        return 2 * F.cross_entropy(logits, batch[1]), torch.ones(())

    torch.manual_seed(5)
    history, best = fit(net, optimizer_of(net), half_epochs(load, 40, 16, 2, seed=5), step, lambda: 0.5, CPU)
    assert [len(rows) for _, rows in asked] == [14, 13, 13] * 2
    for epoch in (0, 1):
        assert sorted(np.concatenate([rows for e, rows in asked if e == epoch])) == list(range(40))

    torch.manual_seed(5)
    plain.train()
    named = list(plain.named_parameters())
    groups = [{"params": [p], "lr": 0.1 if "head" in n else 0.01, "weight_decay": 0.3 if p.ndim > 1 else 0.0} for n, p in named]
    optimizer = torch.optim.AdamW(groups, foreach=False, fused=False)
    lengths = []
    for i, (_, rows) in enumerate(asked):
        done = (i + 0.5) / 6
        share = done / 0.1 if done < 0.1 else 0.5 * (1 + math.cos(math.pi * (done - 0.1) / 0.9))
        for group, (n, _) in zip(optimizer.param_groups, named):
            group["lr"] = share * (0.1 if "head" in n else 0.01)
        optimizer.zero_grad()
        (2 * F.cross_entropy(plain(X[rows]), Y[rows])).backward()
        length = sum(p.grad.square().sum() for p in plain.parameters()).sqrt()
        lengths.append(length.item())
        for p in plain.parameters():
            p.grad.mul_(min(1, 1 / (length + 1e-6)))
        optimizer.step()
    assert min(lengths) < 2 < max(lengths) or min(lengths) < 1 < max(lengths), lengths  # Adam would not tell other lengths otherwise
    for (n, a), b in zip(net.state_dict().items(), plain.state_dict().values()):
        assert torch.allclose(a.float(), b.float(), atol=1e-5), n
    assert [row["step"] for row in history] == [0, 1, 3, 4, 6] and [row["epoch"] for row in history] == [0, 1 / 3, 1, 4 / 3, 2]
    assert torch.equal(best["head.weight"], Toy().head.weight)  # no score was better than the first: the smallest change


def test_best_is_the_first_of_the_highest_and_history_tells_the_loss():
    net, scores, seen_states = Toy(), iter([1, 5, 5, 7, 7.0]), []

    def validate():
        assert not net.training
        seen_states.append(snapshot(net))
        return next(scores)

    history, best = train(net, validate=validate)
    assert [row["val"] for row in history] == [1, 5, 5, 7, 7]
    assert all(torch.equal(best[k], seen_states[3][k]) for k in best) and not torch.equal(best["head.weight"], net.head.weight)
    assert set(history[1]) == {"epoch", "step", "train", "val", "loss", "lr", "seconds", "busy"} and 0 < history[-1]["lr"] < 0.01
    assert all(0 <= row["train"] <= 1 and 0 < row["loss"] < 5 for row in history[1:])


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_interrupted_anywhere_it_ends_in_the_same_bits(tmp_path, stop, capsys):
    """Also dropout, batch norm's statistics and the optimizer go on as if nothing had happened."""
    whole = Toy()
    history, best = train(whole, validate=lambda: whole.head.weight.sum().item())
    net, calls = Toy(), []

    def cut_off():
        calls.append(0)
        if len(calls) > stop + 1:
            raise ConnectionError
        return net.head.weight.sum().item()

    options = {"checkpoint": tmp_path / "c.ckpt", "about": {"lr": 0.01}}
    with pytest.raises(ConnectionError):
        train(net, validate=cut_off, **options)
    torch.manual_seed(99)
    net = Toy()
    torch.rand(7)
    again, best_again = train(net, validate=lambda: net.head.weight.sum().item(), **options)
    assert f"step {[0, 1, 3, 4][stop]} of 6" in capsys.readouterr().out
    for row in history + again:
        del row["seconds"], row["busy"]
    assert again == history
    for a, b in ((whole.state_dict(), net.state_dict()), (best, best_again)):
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert train(Toy(), validate=None, **options)[0] == torch.load(tmp_path / "c.ckpt")["history"]  # finished: nothing is done again


def test_other_arguments_are_refused_by_name(tmp_path, capsys):
    path = tmp_path / "c.ckpt"
    train(Toy(), checkpoint=path, about={"--lr": 0.01, "images": "a"})
    for about, word in (({"--lr": 0.1, "images": "a"}, "--lr 0.01 there, 0.1 here"), ({"--lr": 0.01, "images": "b"}, "images a there")):
        with pytest.raises(SystemExit) as end:
            train(Toy(), checkpoint=path, about=about)
        err = capsys.readouterr().err
        assert end.value.code == 2 and word in err and str(path) in err and "--restart" in err and err.count("\n") == 1
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(SystemExit):
        train(Toy(), checkpoint=path, about={})
    assert "c.ckpt: not a readable checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["loss", "weight"])
def test_not_a_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, where, capsys):
    net, steps = Toy(), []

    def step(batch):
        steps.append(0)
        if len(steps) == (5 if where == "loss" else 6):  # the last before a checkpoint, whose loss is that of the weights before
            if where == "weight":
                net.visual[0].weight.data[0, 0] = math.inf
                return net.head.bias.sum(), torch.ones(())
            return net(batch[0]).sum() * math.nan, torch.ones(())
        return F.cross_entropy(net(batch[0]), batch[1]), torch.ones(())

    with pytest.raises(SystemExit) as end:
        train(net, step=step, checkpoint=tmp_path / "c.ckpt", about={})
    err = capsys.readouterr().err
    assert end.value.code == 2 and "no longer finite at step" in err and "keeps step 4" in err and err.count("\n") == 1
    assert torch.load(tmp_path / "c.ckpt")["history"][-1]["step"] == 4 and len(steps) == (5 if where == "loss" else 6)


def test_every_trainable_tensor_is_in_the_optimizer_once(world):
    for name, freeze in (("toy-ViT", False), ("toy-RN", False), ("toy-RN", True)):
        model = load_model(name, "cpu")
        net = finetune.Classifier(model.visual, finetune.Linear(torch.zeros(4, 64), torch.zeros(4)), freeze)
        groups = finetune.parameter_groups(net, 1.0, 2.0, 3.0)
        ids = [id(p) for g in groups for p in g["params"]]
        assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in net.parameters() if p.requires_grad}
        assert {id(p) for p in net.head.parameters()} <= set(ids) and freeze == (len(ids) == 2)
        for g in groups:
            for p in g["params"]:
                assert g["weight_decay"] == (3.0 if p.ndim > 1 else 0.0)
                assert g["lr"] == (2.0 if any(p is q for q in net.head.parameters()) else 1.0)


def test_only_what_must_differ_in_training_does():
    visual = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Identity())
    for freeze, train_bn, bn, dropout in ((False, False, False, True), (True, False, False, False), (False, True, True, True)):
        net = finetune.Classifier(visual, nn.Linear(4, 2), freeze, train_bn).train()
        assert (visual[1].training, visual[2].training, visual.training) == (bn, dropout, False)
        assert not any(m.training for m in net.eval().modules())


def test_linear_head_is_the_same_function_however_it_is_kept():
    f, shift, scale = 3 + 2 * torch.randn(9, 5), torch.full((5,), 3.0), torch.tensor(2.0)
    weight, bias = torch.randn(4, 5), torch.randn(4)
    head = finetune.Linear(weight, bias, shift, scale)
    assert torch.allclose(head(f), f @ weight.T + bias, atol=1e-4)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(head.plain(), (weight, bias)))
    unit = finetune.Linear(weight, bias)
    assert torch.allclose(unit(f), F.normalize(f, dim=1) @ weight.T + bias, atol=1e-5) and unit.plain()[0] is unit.weight


def test_temperature_is_capped_at_that_of_clip():
    scale = nn.Parameter(torch.tensor(5.0))
    z = F.normalize(torch.randn(3, 4), dim=1)
    logits = finetune.Cosine(z, scale)(2 * z)
    assert logits.diag().tolist() == pytest.approx([100] * 3, rel=1e-4)
    logits.sum().backward()
    assert scale.grad != 0  # and can come down again


def test_saved_temperature_is_within_the_cap(world, call, monkeypatch):
    def hot(*args, **options):
        history, best = fit(*args, **options)
        return history, best | {"head.logit_scale": torch.tensor(4.7)}  # as after a last step beyond the cap

    monkeypatch.setattr(finetune, "fit", hot)
    tune(call, "--model", "toy-RN", "--method", "cs", "--save", "cs.safetensors")
    assert load_file("cs.safetensors")["logit_scale"].item() == pytest.approx(math.log(100))


def test_interpolation_is_exact_at_its_ends():
    a, b = {"w": torch.randn(50), "n": torch.tensor(1)}, {"w": torch.randn(50), "n": torch.tensor(9)}
    assert torch.equal(finetune.interpolate(a, b, 0.0)["w"], a["w"]) and torch.equal(finetune.interpolate(a, b, 1.0)["w"], b["w"])
    assert torch.allclose(finetune.interpolate(a, b, 0.3)["w"], 0.7 * a["w"] + 0.3 * b["w"], atol=1e-6)


def test_paired_difference_is_of_the_same_images():
    rng = np.random.default_rng(0)
    before, after = rng.random(400) < 0.6, rng.random(400) < 0.7
    gain = common.paired_difference(after, before, np.arange(400))  # classes of one image each
    d = after.astype(int) - before.astype(int)
    boot = [d[rng.integers(0, 400, 400)].mean() for _ in range(4000)]
    assert gain["mean"] == pytest.approx(after.mean() - before.mean())
    for interval in ("ci95",):
        assert gain[interval] == pytest.approx(np.quantile(boot, [0.025, 0.975]), abs=0.006)


# ---- the script -----------------------------------------------------------------------------------------------------


def tune(call, *args):
    code, out, err = call(finetune.main, "--data", "tiny", "--batch", 8, "--epochs", 2, *args)
    assert code == 0, err
    return out


def record(path):
    return json.loads(open(path).read())


def without_time(history):
    return [{k: v for k, v in row.items() if k not in ("seconds", "busy")} for row in history]


def test_cs_without_learning_is_zero_shot(world, call):
    """Exactly, on every image; and its whole CLIP is an ordinary checkpoint afterwards."""
    rates = ("--lr", 0, "--head-lr", 0)
    tune(call, "--model", "toy-RN", "--method", "cs", *rates, "--out", "cs.json", "--save", "cs.safetensors")
    for weights in ((), ("--weights", "cs.safetensors")):
        assert call(zero_shot.main, "--data", "tiny", "--model", "toy-RN", "--out", "z.json", *weights)[0] == 0
        theirs, m = np.load("z.npz"), record("cs.json")["metrics"]
        ours = np.load("cs.npz")
        assert (ours["predicted"] == theirs["predicted"]).all() and (ours["confidence"] == theirs["confidence"]).all()
        assert m["before"] == m["top1"] == record("z.json")["metrics"]["top1"] and m["wise_alpha"] == 0
        assert len(set(m["wise"].values())) == 1 and m["gain"]["mean"] == 0 and m["best_epoch"] == 0


def test_cs_learns_and_its_checkpoint_is_an_ordinary_one(world, call):
    out = tune(call, "--model", "toy-ViT", "--method", "cs", "--lr", 1e-3, "--out", "cs.json", "--save", "cs.safetensors", "--train-bn")
    r = record("cs.json")
    assert r["history"][3]["loss"] < r["history"][1]["loss"] and "before" in out and "WiSE-FT" in out
    assert call(zero_shot.main, "--data", "tiny", "--model", "toy-ViT", "--weights", "cs.safetensors", "--out", "z.json")[0] == 0
    assert record("z.json")["metrics"]["top1"] == r["metrics"]["top1"] and record("z.json")["labels_used"] == 32
    assert (np.load("z.npz")["predicted"] == np.load("cs.npz")["predicted"]).all()
    state, old = load_file("cs.safetensors"), torch.load("weights/toy-ViT.pt")
    net = clip.model.build_model(dict(state))
    assert net.visual.input_resolution == 64
    same = {key for key in old if torch.equal(state[key].float(), old[key].float())}
    assert all((key in same) == (not key.startswith("visual.") and key != "logit_scale") for key in old)  # text tower as it was
    with safe_open("cs.safetensors", "pt") as file:
        about = json.loads(file.metadata()["about"])
    assert about["classes"] == sorted(toy.TOY[:4]) and about["prompts"] == ["a photo of a {}."]
    assert about["act"] == "quickgelu" and about["method"] == "cs"


def test_record_has_what_a_plot_needs(world, call):
    tune(call, "--model", "toy-ViT", "--lr", 1e-3, "--out", "r.json")
    r = record("r.json")
    m, rows = r["metrics"], [row for row in r["history"] if "epoch" in row]
    assert set(m) >= {"val", "top1", "top1_ci95", "top1_ci95_other_classes", "mean_per_class", "before", "wise", "wise_alpha", "test_wise"}
    assert m["seconds_per_step"] > 0 and set(m["test_wise"]) == {"0", "chosen", "1"}
    assert r["data"]["counts"] == {"train": 24, "val": 8, "test": 32} and r["labels_used"] == 32
    assert [row["epoch"] for row in rows] == [0, 1 / 3, 1, 4 / 3, 2] and [row["step"] for row in rows] == [0, 1, 3, 4, 6]
    assert all(set(row) == {"seed", "epoch", "step", "train", "val", "loss", "lr", "seconds", "busy"} for row in rows)
    assert m["val"] == max(row["val"] for row in rows)
    curve = {row["alpha"]: row["val"] for row in r["history"] if "alpha" in row}
    assert list(curve) == finetune.ALPHAS and {float(a): v for a, v in m["wise"].items()} == curve
    assert m["wise_alpha"] == min(a for a, v in curve.items() if v == max(curve.values()))
    assert curve[0] == rows[0]["val"] and curve[1] == m["val"] and m["test_wise"]["0"] == m["before"] and m["test_wise"]["1"] == m["top1"]
    assert (np.load("r.npz")["predicted"] == np.load("r.npz")["true"]).mean() == m["top1"]
    assert not list(world.rglob("*.ckpt"))


def test_same_seed_same_numbers_and_several_seeds_are_those_one_by_one(world, call):
    args = ("--model", "toy-imagenet", "--lr", 1e-3)
    out = tune(call, *args, "--seeds", 2, "--out", "two.json")
    tune(call, *args, "--out", "one.json")
    two, one = record("two.json"), record("one.json")
    assert "2 seeds" in out and two["metrics"]["top1"] == one["metrics"]["top1"] == two["metrics"]["seeds"]["values"][0]
    first, second = ([row for row in two["history"] if row["seed"] == seed] for seed in (0, 1))
    assert without_time(first) == without_time(one["history"]) != without_time(second) and len(first) == len(second)
    assert first[0]["val"] != second[0]["val"] or first[1]["loss"] != second[1]["loss"]  # another random head
    assert one["metrics"]["wise"] is None and one["metrics"]["wise_alpha"] == 1 and one["args"]["head"] == "random"
    values = two["metrics"]["seeds"]["values"]
    assert two["metrics"]["seeds"]["std"] == pytest.approx(np.std(values, ddof=1)) and two["metrics"]["seeds"]["mean"] == np.mean(values)


def test_each_seed_starts_from_the_encoder_as_it_was(world, call):
    tune(call, "--model", "toy-RN", "--lr", 0.01, "--seeds", 2, "--out", "r.json")
    rows = [[row["val"] for row in record("r.json")["history"] if row["seed"] == seed and "epoch" in row] for seed in (0, 1)]
    assert rows[0][0] == rows[1][0] != rows[0][-1]


@pytest.mark.parametrize("flags, changed", [((), False), (("--freeze",), False), (("--train-bn",), True)])
def test_what_is_frozen_stays_in_every_bit(flags, changed, world, call):
    tune(call, "--model", "toy-RN", "--lr", 1e-3, *flags, "--save", "ml.safetensors")
    state, old = load_file("ml.safetensors"), torch.load("weights/toy-RN.pt")
    moved = {key for key in old if not torch.equal(state[key].float(), old[key].float())}
    assert any("running_mean" in key for key in moved) == changed
    weights = {key for key in moved if "running" not in key and "num_batches" not in key}
    trainable = {key for key in old if key.startswith("visual.") and "running" not in key and "num_batches" not in key}
    assert not weights if "--freeze" in flags else weights >= {k for k in trainable if k.endswith("weight")} and weights <= trainable


@pytest.mark.parametrize("model", ["toy-RN", "toy-imagenet"])
def test_frozen_and_unaugmented_it_reaches_the_probe(model, world, call):
    (world / "data").unlink()
    shutil.copytree((world / "weights").resolve().parent / "data", world / "data")
    shutil.copytree(world / "data/tiny/Test", world / "data/tiny/Validation")  # more images to choose by than a fifth of train
    probe = ("--features", "projected") if model == "toy-RN" else ()
    assert call(linear_probe.main, "--data", "tiny", "--model", model, *probe, "--out", "p.json")[0] == 0
    args = ("--freeze", "--no-augment", "--head", "random", "--head-lr", 0.03, "--decay", 0, "--epochs", 15)
    tune(call, "--model", model, *args, "--out", "r.json")
    ours, theirs = record("r.json")["metrics"], record("p.json")["metrics"]
    assert ours["val"] == ours["top1"] >= theirs["top1"] - 1 / 32 and ours["before"] < theirs["top1"] - 0.2


def test_a_frozen_encoder_sees_what_validates_and_tests_once(world, call, monkeypatch):
    seen, encode = [], common.Model.encode_image
    monkeypatch.setattr(common.Model, "encode_image", lambda self, x: seen.append(len(x)) or encode(self, x))
    tune(call, "--model", "toy-RN", "--freeze", "--head", "random", "--out", "r.json")
    assert sum(seen) == 32 + 32  # for the mean and the spread of all that train, and for validation; of test


def test_a_step_is_the_same_with_either_kernel_of_attention(world, monkeypatch):
    found = []
    for kernel in (finetune.sdpa_kernel, lambda _: nullcontext()):
        monkeypatch.setattr(finetune, "sdpa_kernel", kernel)
        model = load_model("toy-ViT", "cpu", precision="float32")
        images = load_data("tiny").images(model.view)["train"]
        net = finetune.Classifier(model.visual, finetune.Linear(torch.eye(4, 64), torch.zeros(4)))
        batch = finetune.loader(images, 0)(np.arange(8), 0)
        loss, _ = finetune.train_step(net, model)(finetune.preparation(model)(batch))
        loss.backward()
        found.append([loss, *(p.grad for p in net.parameters())])
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(*found, strict=True))


@pytest.mark.gpu
def test_steps_that_a_gpu_replays_are_those_it_is_told_one_by_one(world, monkeypatch):
    """Of batches of two sizes, in an optimizer with momenta, with augmentation and a rate that changes at each step."""
    ends, recorded, record = [], [], torch.cuda.graph
    monkeypatch.setattr(torch.cuda, "graph", lambda *args, **options: recorded.append(1) or record(*args, **options))
    replayed = common._replayed
    for how in (lambda update: update, replayed, replayed):
        monkeypatch.setattr(common, "_replayed", how)
        model = load_model("toy-ViT", "cuda", precision="float32")
        train = load_data("tiny").images(model.view)["train"]
        torch.manual_seed(0)
        net = finetune.Classifier(model.visual, finetune.Linear(torch.randn(4, 64), torch.zeros(4)).to(model.device))
        optimizer = torch.optim.AdamW(finetune.parameter_groups(net, 1e-4, 1e-3, 0.1), fused=True)
        legs = half_epochs(finetune.loader(train, 0), len(train), 12, 6, 0)  # of 11, 11 and 10
        history, _ = fit(net, optimizer, legs, finetune.train_step(net, model), lambda: 0.0, model, prepare=finetune.preparation(model))
        ends.append([row["loss"] for row in history[1:]])
    assert len(recorded) == 4  # of two sizes, twice
    assert np.allclose(*ends[:2], rtol=1e-3) and np.allclose(*ends[1:], rtol=1e-3)
    assert ends[0][-1] < ends[0][0]


@pytest.mark.parametrize("model", [pytest.param("toy-ViT", marks=pytest.mark.slow), "toy-imagenet"])
def test_a_probe_is_a_start_that_has_not_seen_what_validates(model, world, call):
    assert call(linear_probe.main, "--data", "tiny", "--model", model, "--save", "head.safetensors", "--out", "p.json")[0] == 0
    tune(call, "--model", model, "--head", "head.safetensors", "--lr", 1e-4, "--out", "r.json", "--save", "ml.safetensors")
    m, tensors = record("r.json")["metrics"], load_file("head.safetensors")
    assert set(tensors) == {"head.weight", "head.bias", "held_out.weight", "held_out.bias"}
    assert record("r.json")["model"]["features"] == "penultimate" and set(m["wise"]) == {str(a) for a in finetune.ALPHAS}
    # training goes on from the probe of the images that train here: as it is on them, and not as the final probe on those that validate
    tune(call, "--model", model, "--head", "head.safetensors", "--lr", 0, "--head-lr", 0, "--no-augment", "--out", "still.json")
    still = record("still.json")
    logits = []
    for name in ("head", "held_out"):
        swapped = {f"head.{part}": tensors[f"{name}.{part}"] for part in ("weight", "bias")}
        save_weights("one.safetensors", swapped, read_weights("head.safetensors")[0])
        files = sorted((world / "data/tiny/Test").rglob("*.jpg"))
        _, out, _ = call(finetune.main, "--load", "one.safetensors", "--predict", *files)
        logits.append([line.split() for line in out.splitlines() if not line.startswith("/")])
    assert logits[0] != logits[1]
    top = [line[1:] for line in logits[1]][::4]
    assert np.mean([" ".join(t) == f.parent.name for t, f in zip(top, files)]) == pytest.approx(still["metrics"]["before"])
    for args, word in ((("--seed", 1), "--seed"), (("--weights", "w.pt"), "weights"), (("--model", "toy-RN"), "of --model toy-RN")):
        torch.save(random_weights(model, 3), "w.pt")
        code, _, err = call(finetune.main, "--data", "tiny", "--model", model, "--batch", 8, "--head", "head.safetensors", *args)
        assert code == 2 and word in err and err.count("\n") == 1


@pytest.mark.parametrize("model", ["toy-ViT", "toy-imagenet"])
def test_saved_it_names_pictures_and_is_an_encoder(model, world, call):
    args = ("--lr", 1e-3, "--out", "r.json", "--save", "ml.safetensors")
    tune(call, "--model", model, *args)
    files = sorted((world / "data/tiny/Test").rglob("*.jpg"))
    code, out, _ = call(finetune.main, "--load", "ml.safetensors", "--predict", *files)
    lines = out.splitlines()
    assert code == 0 and lines[::5] == [str(f) for f in files]
    found, r = [line.split(maxsplit=1)[1] for line in lines[1::5]], np.load("r.npz")
    by_path = {path: record("r.json")["data"]["classes"][i] for path, i in zip(r["index"], r["predicted"])}
    assert found == [by_path[str(f.relative_to(world / "data/tiny"))] for f in files]
    assert sum(float(line.split()[0]) for line in lines[1:5]) == pytest.approx(1, abs=0.01)
    code, out, err = call(linear_probe.main, "--data", "tiny", "--model", model, "--weights", "ml.safetensors")
    assert code == 0 and "trained with 32 labelled images" in out, err


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_bits(world, call):
    args = ["--model", "toy-RN", "--method", "cs", "--lr", "1e-3", "--epochs", "12"]
    command = [sys.executable, ROOT / "finetune.py", "--data", "tiny", "--batch", "8", *args, "--out", "cut.json"]
    process = subprocess.Popen(command, cwd=world, stdout=subprocess.DEVNULL)
    while not (world / "cut.0.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (world / "cut.json").exists()
    code, _, err = call(finetune.main, "--data", "tiny", "--batch", 8, *args, "--lr", "1e-4", "--out", "cut.json")
    assert code == 2 and "--lr 0.001 there, 0.0001 here" in err and err.count("\n") == 1
    out = tune(call, *args, "--out", "cut.json", "--save", "cut.safetensors")
    assert "goes on from cut.0.ckpt" in out and not (world / "cut.0.ckpt").exists()
    out = tune(call, *args, "--out", "whole.json", "--save", "whole.safetensors", "--restart")
    assert "goes on" not in out
    cut, whole = record("cut.json"), record("whole.json")
    assert without_time(cut["history"]) == without_time(whole["history"])
    assert {k: v for k, v in cut["metrics"].items() if "seconds" not in k} == {
        k: v for k, v in whole["metrics"].items() if "seconds" not in k
    }
    a, b = load_file("cut.safetensors"), load_file("whole.safetensors")
    assert all(torch.equal(a[key], b[key]) for key in b)


def test_a_checkpoint_of_a_later_seed_is_refused_before_the_first_trains(world, call):
    torch.save({"about": {"--lr": 3.0}}, "r.1.ckpt")
    args = ("--data", "tiny", "--model", "toy-RN", "--batch", 8, "--seeds", 2, "--epochs", 1, "--out", "r.json")
    code, out, err = call(finetune.main, *args)
    assert code == 2 and "r.1.ckpt" in err and "--lr 3.0 there" in err and err.count("\n") == 1
    assert (world / "r.1.ckpt").exists() and not (world / "r.0.ckpt").exists()
    assert call(finetune.main, *args, "--restart")[0] == 0 and not list(world.glob("*.ckpt"))


@pytest.mark.slow
def test_full_disk_while_checkpointing_loses_nothing(world, call):
    limit = """
import resource, runpy, signal, sys
import common
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save, times = common.torch.save, []
def full_at_the_third(saved, file):
    times.append(0)
    if len(times) == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # bytes a file
    save(saved, file)
common.torch.save = full_at_the_third
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    (world / "limit.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})" + limit)
    args = ["--data", "tiny", "--model", "toy-RN", "--batch", "8", "--epochs", "2", "--out", "r.json"]
    done = run("limit.py", ROOT / "finetune.py", *args, cwd=world, script_folder=world)
    assert done.returncode == 2 and "r.0.ckpt: cannot be written" in done.stderr and done.stderr.count("\n") == 1
    assert torch.load(world / "r.0.ckpt")["history"][-1]["step"] == 3 and not [f for f in world.glob(".*") if f.is_file()]
    assert "step 3 of 6" in call(finetune.main, *args)[1]
    tune(call, "--model", "toy-RN", "--out", "whole.json")
    assert without_time(record("r.json")["history"]) == without_time(record("whole.json")["history"])


@pytest.mark.parametrize(
    "args, word",
    [
        (("--method", "fine"), "--method"),
        (("--model", "toy-imagenet", "--method", "cs"), "no text side"),
        (("--model", "toy-imagenet", "--head", "text"), "no text side"),
        (("--model", "toy-imagenet", "--prompts", "a {}."), "--prompts"),
        (("--model", "toy-ViT", "--batch", "25"), "--batch 25"),
        (("--head", "none.safetensors"), "none.safetensors"),
        (("--head", "data/tiny/Test"), "data/tiny/Test"),
        (("--method", "cs", "--freeze"), "--freeze"),
        (("--freeze", "--train-bn"), "--train-bn"),
        (("--lr", "-1"), "--lr"),
        (("--lr", "nan"), "--lr"),
        (("--epochs", "0"), "--epochs"),
        (("--save", "w.pt"), ".safetensors"),
        (("--load", "w.safetensors"), "--predict"),
        (("--load", "w.safetensors", "--predict", "x.jpg"), "w.safetensors"),
        (("--out", "r.txt"), ".json"),
    ],
)
def test_bad_input_is_one_line(args, word, world, call):
    code, _, err = call(finetune.main, "--data", "tiny", *args)
    assert code == 2 and word in err.splitlines()[-1] and "Traceback" not in err


def test_a_class_without_images_and_one_image_a_class(world, call):
    (world / "data").unlink()
    shutil.copytree((world / "weights").resolve().parent / "data", world / "data")
    folders = sorted((world / "data/tiny/Training").iterdir())
    for folder in folders:
        for file in list(folder.iterdir())[1:]:
            file.unlink()
    code, _, err = call(finetune.main, "--data", "tiny", "--model", "toy-ViT", "--batch", 2)
    assert code == 2 and "one image or group a class" in err and err.count("\n") == 1
    next(folders[0].iterdir()).unlink()
    code, _, err = call(finetune.main, "--data", "tiny", "--model", "toy-ViT", "--batch", 2)
    assert code == 2 and folders[0].name in err and err.count("\n") == 1
