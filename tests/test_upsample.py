"""upsample.py: the generator against one written out here, measures against scikit-image, and data sets that are enlarged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

import toy
import upsample as sr
import zero_shot
from common import _load_images as load_images, _upsample_by_products, hold_out, load_data, native_size, upsample

# ---- networks ---------------------------------------------------------------------------------------------------------


def random_state(blocks=2, width=8, seed=0):
    """A state dict in the shape that PyTorch-GAN's generator has, written out key by key."""
    rng = torch.Generator().manual_seed(seed)
    state = {}

    def conv(name, out, channels, size):
        state[f"{name}.weight"] = torch.randn(out, channels, size, size, generator=rng) / (channels * size * size) ** 0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(out, generator=rng)

    def norm(name, channels):
        state[f"{name}.weight"], state[f"{name}.bias"] = (torch.rand(channels, generator=rng) + add for add in (0.5, -0.5))
        state[f"{name}.running_mean"] = 0.2 * torch.randn(channels, generator=rng)
        state[f"{name}.running_var"] = torch.rand(channels, generator=rng) + 0.2
        state[f"{name}.num_batches_tracked"] = torch.tensor(3)

    def prelu(name):
        state[f"{name}.weight"] = torch.rand(1, generator=rng)

    conv("conv1.0", width, 3, 9)
    prelu("conv1.1")
    for i in range(blocks):
        for place in (0, 3):
            conv(f"res_blocks.{i}.conv_block.{place}", width, width, 3)
            norm(f"res_blocks.{i}.conv_block.{place + 1}", width)
        prelu(f"res_blocks.{i}.conv_block.2")
    conv("conv2.0", width, width, 3)
    norm("conv2.1", width)
    for place in (0, 4):
        conv(f"upsampling.{place}", 4 * width, width, 3)
        norm(f"upsampling.{place + 1}", 4 * width)
        prelu(f"upsampling.{place + 3}")
    conv("conv3.0", 3, width, 9)
    return state


def reference(state, x, eps, pad):
    """SRGAN's generator without its end, from functions alone."""

    def conv(name, x):
        half = state[f"{name}.weight"].shape[2] // 2
        x = F.pad(x, [half] * 4, **({"mode": "replicate"} if pad == "replicate" and name != "conv3.0" else {}))
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, x, eps):
        weight, bias, mean, var = (state[f"{name}.{k}"][:, None, None] for k in ("weight", "bias", "running_mean", "running_var"))
        return (x - mean) / (var + eps).sqrt() * weight + bias

    def prelu(name, x):
        return torch.where(x > 0, x, state[f"{name}.weight"] * x)

    first = y = prelu("conv1.1", conv("conv1.0", x))
    for i in range(sum(key.startswith("res_blocks") and key.endswith("conv_block.0.weight") for key in state)):
        b = f"res_blocks.{i}.conv_block"
        y = y + norm(f"{b}.4", conv(f"{b}.3", prelu(f"{b}.2", norm(f"{b}.1", conv(f"{b}.0", y), eps))), eps)
    y = first + norm("conv2.1", conv("conv2.0", y), eps)
    for place in (0, 4):
        y = norm(f"upsampling.{place + 1}", conv(f"upsampling.{place}", y), 1e-5)
        b, c, h, w = y.shape  # four channels become two by two pixels
        y = y.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)
        y = prelu(f"upsampling.{place + 3}", y)
    return conv("conv3.0", y)


def smooth(count=2, height=12, width=10, seed=0):
    """uint8 pictures (count, 3, height, width)."""
    small = torch.randint(0, 256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(seed)).float()
    return F.interpolate(small, size=(height, width), mode="bicubic").clamp(0, 255).to(torch.uint8)


CPU = torch.device("cpu")


def test_generator_of_pytorch_gan():
    """ImageNet normalisation in, tanh out and de-normalised, batch norms with an eps of .8."""
    state, low = random_state(), smooth()
    net = sr.build(state, "pytorch-gan")["srgan"].eval()
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = reference(state, (low / 255 - mean) / std, 0.8, "zeros").tanh() * std + mean
    expected = (255 * expected).clamp(0, 255)
    for same in (net, sr.fold(sr.build(state, "pytorch-gan")["srgan"])):
        restored = sr.restore(sr.as_model(same, "srgan", 0, CPU, torch.float32), low)
        assert restored.shape == (2, 3, 48, 40) and (restored - expected).abs().max() < 0.51
    x = (low / 255 - mean) / std
    assert (reference(state, x, 1e-5, "zeros") - reference(state, x, 0.8, "zeros")).abs().max() > 0.05


@pytest.mark.parametrize("blocks, width", [(2, 8), (1, 5)])
def test_own_generator_adds_to_bicubic_and_folding_changes_nothing(blocks, width):
    state, low = random_state(blocks, width), smooth()
    net = sr.build({f"srgan.{key}": tensor for key, tensor in state.items()})["srgan"].eval()
    x = low / 255
    with torch.no_grad():
        expected = reference(state, x, 1e-5, "replicate") + F.interpolate(x, scale_factor=4, mode="bicubic", antialias=True)
        assert (net(x) - expected).abs().max() < 1e-4
        assert (sr.fold(net)(x) - expected).abs().max() < 1e-4
    assert not [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)] and net.conv3[0].out_channels == 16


@pytest.mark.parametrize("dialect", [None, "pytorch-gan"])
def test_sixteen_bits_throughout_are_those_of_autocast(dialect):
    state, low = random_state(), smooth()
    state = state if dialect else {f"srgan.{key}": tensor for key, tensor in state.items()}
    exact, mixed, whole = (
        sr.restore(sr.as_model(sr.fold(sr.build(state, dialect)["srgan"], weights), "srgan", 0, CPU, dtype), low).int()
        for weights, dtype in ((torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16))
    )
    assert torch.equal(mixed, whole) and 0 < (whole - exact).float().abs().mean() < 1


def test_untrained_it_is_bicubic_and_no_picture_is_stretched():
    model = sr.as_model(sr.Generator(2, 8).eval(), "srgan", 0, CPU, torch.float32)
    low = torch.cat([smooth() // 3 + 80, torch.full((1, 3, 12, 10), 255, dtype=torch.uint8)])  # low contrast, and white
    restored = sr.restore(model, low)
    expected = np.stack([np.asarray(Image.fromarray(p).resize((40, 48), Image.BICUBIC)) for p in low.permute(0, 2, 3, 1).numpy()])
    assert np.abs(restored.permute(0, 2, 3, 1).numpy().astype(int) - expected).max() <= 1
    assert (restored[2] == 255).all() and restored[:2].max() < 180
    assert torch.equal(sr.restore(model, low[:1]), restored[:1])  # whatever lies beside it in the batch


def test_inside_of_a_large_picture_is_as_in_a_small_one():
    """Of one colour the output has no border that it saw in training: a generator padded with zeros would show one."""
    net = sr.build({f"srgan.{key}": tensor for key, tensor in random_state().items()})["srgan"].eval()
    with torch.no_grad():
        y = net(torch.full((1, 3, 20, 20), 0.7))
    inside = y[:, :, 8:-8, 8:-8]  # what comes after a shuffle sees the border, but no farther than two source pixels
    assert (inside - inside[:, :, :4, :4].repeat(1, 1, 16, 16)).abs().max() < 1e-4


def test_each_adversarial_loss_teaches_its_own_network():
    torch.manual_seed(0)
    critic, real = sr.Discriminator(4), torch.rand(4, 3, 32, 32)
    fake = torch.rand(4, 3, 32, 32, requires_grad=True)
    assert critic(real).shape == (4, 1, 2, 2)
    judged, fooled = sr.adversarial_losses(critic, real, fake)
    fooled.backward()
    assert fake.grad.abs().sum() > 0 and all(p.grad is None for p in critic.parameters())
    fake.grad = None
    judged.backward()
    assert fake.grad is None and all(p.grad is not None for p in critic.parameters())
    # the discriminator wants high logits for photos, the generator for its own
    logits = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(-1.0))

    class Fixed(nn.Module):
        def forward(self, x):
            return logits[int(x.mean() > 0)].expand(4)

    judged, fooled = sr.adversarial_losses(Fixed(), torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    bce = F.binary_cross_entropy_with_logits
    assert judged.item() == pytest.approx(2 * bce(torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 0.0])).item())
    assert fooled.item() == pytest.approx(bce(torch.tensor(2.0), torch.tensor(1.0)).item())


WANG = {"data_range": 255, "channel_axis": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}  # their SSIM

# ---- measures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("there", "here"), [(32, 64), (100, 224), (100, 400), (400, 100), (31, 224)])
def test_products_of_matrices_enlarge_as_pillow_does(there, here, mode, dtype):
    """What a GPU does, on noise, which overshoots more than any picture."""
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, there, there, 3), np.uint8))
    expected = [np.asarray(Image.fromarray(p).resize((here, here), Image.Resampling[mode.upper()])) for p in x.numpy()]
    found = _upsample_by_products(x.permute(0, 3, 1, 2), (here, here), mode, dtype)
    assert found.dtype == torch.uint8 and np.abs(found.permute(0, 2, 3, 1).numpy() - np.int32(expected)).max() <= 2


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 11, 40), (2, 57, 23)])
def test_psnr_and_ssim_are_scikit_images(shape):
    count, height, width = shape
    x, y = smooth(count, height, width, 1), smooth(count, height, width, 1)
    y[:, :, 2:7, 3:9] = torch.randint(0, 256, (count, 3, 5, 6), dtype=torch.uint8)
    y[0] = (x[0].float() * 0.8 + 20).to(torch.uint8)
    a, b = (t.permute(0, 2, 3, 1).numpy() for t in (x, y))
    assert sr.psnr(x, y).tolist() == pytest.approx([peak_signal_noise_ratio(p, q, data_range=255) for p, q in zip(a, b)], abs=1e-4)
    assert sr.ssim(x, y).tolist() == pytest.approx([structural_similarity(p, q, **WANG) for p, q in zip(a, b)], abs=1e-9)
    assert sr.psnr(x, x).tolist() == [100.0] * count and sr.ssim(x, x).tolist() == pytest.approx([1.0] * count)


def test_on_real_photos_too(real):
    files = sorted((real / "fruits360").rglob("*.jpg"))[:400:100]
    high = torch.from_numpy(np.stack([np.array(Image.open(f)) for f in files])).permute(0, 3, 1, 2)
    restored = upsample(upsample(high, 25), 100)
    a, b = (t.permute(0, 2, 3, 1).numpy() for t in (restored, high))
    assert sr.psnr(restored, high).tolist() == pytest.approx([peak_signal_noise_ratio(q, p) for p, q in zip(a, b)], abs=1e-4)
    assert sr.ssim(restored, high).tolist() == pytest.approx([structural_similarity(p, q, **WANG) for p, q in zip(a, b)], abs=1e-9)
    assert 20 < sr.psnr(restored, high).mean() < 40


# ---- pictures -----------------------------------------------------------------------------------------------------------


def test_crops_are_a_function_of_seed_epoch_and_image():
    picture = np.arange(9 * 12 * 3, dtype=np.uint8).reshape(9, 12, 3)
    whole, seen, places = picture[:9, :9], set(), set()
    for epoch in range(60):
        found = sr.crop(picture, 8, [0, epoch, 3])
        assert np.array_equal(found, sr.crop(picture, 8, [0, epoch, 3])) and found.shape == (8, 8, 3)
        back = [np.rot90(found[:, ::flip], k) for flip in (1, -1) for k in range(4)]
        squares = [picture[t : t + 8, j : j + 8].tobytes() for t in (0, 1) for j in range(5)]
        places.add(next(squares.index(b.tobytes()) for b in back if b.tobytes() in squares))
        seen.add(sr.crop(whole, 9, [0, epoch, 3]).tobytes())
    assert len(seen) == 8 and len(places) == 10


def test_pictures_are_compared_at_a_size_that_they_have():
    def side(sizes):
        return native_size(sizes) or sr.short_side(sizes)

    assert side([(32, 32)] * 3 + [None]) == 32 and side([(500, 500)]) == 500
    assert side([(40, 30)] * 9) == 30 and side([(300, 200), (400, 500)]) == 96
    assert side([(20 + i, 25 + i) for i in range(10)]) == 20 and side([]) == 96


def test_broken_pictures_do_not_count_in_that_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for i, (width, height) in enumerate([(40, 30), (48, 36), (52, 44), (90, 80)]):
            file = Path(f"d/{split}/a/{i}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(file)
    shutil.copytree("d", "e")
    Image.new("RGB", (12, 12)).save("small.png")
    for i in range(3):
        Path(f"e/train/a/{i}x.png").write_bytes(Path("small.png").read_bytes()[:50])
    plain, beside = (sr.own_size(load_data(f"./{name}"), ["train", "test"]) for name in "de")
    assert np.array_equal(plain["train"][:], beside["train"][:]) and plain["train"].pixels.shape[1] > 12


def test_short_side_is_fitted():
    assert sr.fitted(100, 100, 224) == (224, 224) and sr.fitted(50, 100, 64) == (64, 128) and sr.fitted(100, 33, 64) == (194, 64)


# ---- the script -----------------------------------------------------------------------------------------------------------

SMALL = ("--blocks", 1, "--width", 4, "--batch", 8, "--precision", "float32")


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory):
    """A generator file of two random generators, in our own dialect."""
    from safetensors.torch import save_file

    file = tmp_path_factory.mktemp("weights") / "sr.safetensors"
    state = {f"{name}.{key}": tensor for seed, name in enumerate(("pixel", "srgan")) for key, tensor in random_state(seed=seed).items()}
    for name in ("pixel", "srgan"):
        state[f"{name}.conv3.0.weight"] *= 0.1
    save_file(state, file)
    return file


def copy_of_tiny(world):
    """data/mine, a copy that may be changed."""
    tiny = (world / "data").resolve() / "tiny"
    (world / "data").unlink()
    return Path(shutil.copytree(tiny, world / "data" / "mine"))


def test_help_needs_nothing(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    for task, flags in {
        "train": "data seed device precision out save content blocks width batch epochs adversarial lr restart",
        "apply": "data device precision weights dialect batch generator model size to",
        "eval": "data seed device precision out weights dialect batch grid",
    }.items():
        code, out, _ = call(sr.main, task, "--help")
        assert code == 0 and [flag for flag in flags.split() if f"--{flag}" not in out] == [] and "(toy)" in out and "None" not in out
    assert call(sr.main, "--help")[0] == 0 and not list(tmp_path.iterdir())


def test_training_keeps_both_generators_and_tells_the_steps(world, call):
    args = ("train", "--data", "tiny", *SMALL, "--epochs", 2, "--adversarial", 1, "--lr", 0.05)
    args += ("--save", "g.safetensors", "--out", "g.json")
    code, out, err = call(sr.main, *args)
    assert code == 0 and not err and "validation PSNR bicubic" in out
    record = json.loads(Path("g.json").read_text())
    m = record["metrics"]
    assert record["data"]["counts"] == {"train": 24, "val": 8} and record["labels_used"] == 0
    best = max(record["history"][:5], key=lambda row: row["val"])
    assert m["steps"] == {"pixel": best["step"], "srgan": 3} and set(m["val_psnr"]) == {"bicubic", "pixel", "srgan"}
    assert [row["stage"] for row in record["history"]] == ["pixel"] * 5 + ["srgan"] * 3
    assert m["val_psnr"]["pixel"] == max(row["val"] for row in record["history"][:5])
    state = load_file("g.safetensors")
    assert set(state) == {f"{name}.{key}" for name in ("pixel", "srgan") for key in random_state(1, 4)}
    with safe_open("g.safetensors", "pt") as file:
        assert json.loads(file.metadata()["about"])["steps"] == m["steps"]
    assert not list(Path().glob("*.ckpt")) and not torch.equal(state["pixel.conv3.0.weight"], state["srgan.conv3.0.weight"])
    # what is kept is what was validated: of the pixels the best, of the adversarial stage the last
    images = hold_out({"train": load_images(load_data("tiny"), "train", 96)}, 0)["val"]
    high = next(images.batches(8))
    for name, net in sr.build(state).items():
        restored = sr.restore(sr.as_model(net.eval(), name, 0, CPU, torch.float32), upsample(high, 8))
        assert sr.psnr(restored, high).mean().item() == pytest.approx(m["val_psnr"][name], abs=1e-4)
    assert m["val_psnr"]["srgan"] == record["history"][-1]["val"]
    assert Path("g.safetensors").stat().st_mode == Path("g.json").stat().st_mode
    # before any step it is bicubic: PSNR by scikit-image, on the images held out, enlarged by Pillow
    low = upsample(high, 8).permute(0, 2, 3, 1).numpy()
    large = [np.asarray(Image.fromarray(p).resize((32, 32), Image.BICUBIC)) for p in low]
    expected = [peak_signal_noise_ratio(h, p) for h, p in zip(high.permute(0, 2, 3, 1).numpy(), large)]
    assert m["val_psnr"]["bicubic"] == pytest.approx(np.mean(expected), abs=0.02)


def test_training_learns(world, call):
    args = ("train", "--data", "tiny", *SMALL, "--width", 8, "--batch", 4, "--epochs", 24, "--adversarial", 0)
    assert call(sr.main, *args, "--save", "a.safetensors", "--out", "a.json")[0] == 0
    m = json.loads(Path("a.json").read_text())["metrics"]
    assert m["val_psnr"]["pixel"] > m["val_psnr"]["bicubic"] + 0.2 and "srgan" not in m["steps"]
    code, _, err = call(sr.main, "apply", "--data", "tiny", "--weights", "a.safetensors")
    assert code == 2 and "--generator srgan" in err and "pixel" in err and err.count("\n") == 1


@pytest.mark.parametrize("stage", ["pixel", "srgan"])
def test_interrupted_training_ends_in_the_same_bits(stage, world, call, monkeypatch):
    args = ("train", "--data", "tiny", *SMALL, "--epochs", 2, "--adversarial", 2)
    assert call(sr.main, *args, "--save", "whole.safetensors")[0] == 0
    calls, plain = [], F.l1_loss

    def interrupt(*inputs):
        calls.append(0)
        if len(calls) == (5 if stage == "pixel" else 11):
            raise KeyboardInterrupt
        return plain(*inputs)

    monkeypatch.setattr(F, "l1_loss", interrupt)
    with pytest.raises(KeyboardInterrupt):
        call(sr.main, *args, "--save", "cut.safetensors")
    assert Path(f"cut.{stage}.ckpt").exists() and not Path("cut.safetensors").exists()
    if stage == "srgan":
        code, _, err = call(sr.main, *args[:-1], 1, "--save", "cut.safetensors")
        assert code == 2 and "--adversarial" in err and err.count("\n") == 1
        Path("cut.pixel.ckpt").rename("cut.pixel.kept")  # the adversarial stage's is refused before the first trains
        steps = len(calls)
        assert call(sr.main, *args[:-1], 1, "--save", "cut.safetensors")[0] == 2 and len(calls) == steps
        Path("cut.pixel.kept").rename("cut.pixel.ckpt")
    before = len(calls)
    code, out, _ = call(sr.main, *args, "--save", "cut.safetensors")
    assert code == 0 and "goes on from" in out
    whole, cut = load_file("whole.safetensors"), load_file("cut.safetensors")
    assert all(torch.equal(whole[key], cut[key]) for key in whole) and not list(Path().glob("*.ckpt"))
    assert len(calls) - before == (8 if stage == "pixel" else 2)  # of 12, from the validation before the cut


def test_what_it_measures_is_scikit_images(world, call, weights):
    args = ("eval", "--data", "tiny", "--weights", weights, "--batch", 5, "--precision", "float32", "--out", "e.json", "--grid", "g.png")
    code, out, err = call(sr.main, *args)
    assert code == 0 and not err and "another scale" in out and "reduced to 8 px" in out and "srgan - bicubic" in out
    m = json.loads(Path("e.json").read_text())["metrics"]
    high = next(load_images(load_data("tiny"), "test", 96).batches(32))
    low = upsample(high, 8)
    nets = sr.build(load_file(weights))
    restored = {name: sr.restore(sr.as_model(net.eval(), name, 0, CPU, torch.float32), low) for name, net in nets.items()}
    restored["bicubic"] = upsample(low, 32)
    originals = high.permute(0, 2, 3, 1).numpy()
    for measure, function in (
        ("psnr", lambda p, q: peak_signal_noise_ratio(p, q)),
        ("ssim", lambda p, q: structural_similarity(p, q, **WANG)),
    ):
        pictures = {name: x.permute(0, 2, 3, 1).numpy() for name, x in restored.items()}
        values = {name: np.array([function(p, q) for p, q in zip(originals, x)]) for name, x in pictures.items()}
        values |= {"difference": values["srgan"] - values["bicubic"], "difference_pixel": values["pixel"] - values["bicubic"]}
        assert set(m[measure]) == set(values)
        for name, v in values.items():
            assert [m[measure][name]["mean"], m[measure][name]["sd"]] == pytest.approx([v.mean(), v.std(ddof=1)], abs=0.02), (measure, name)
    assert Image.open("g.png").size[0] > 600


def test_the_grid_of_one_picture_is_no_larger_than_that_of_five(tmp_path):
    sizes = []
    for count in (1, 5):
        rows = {name: [np.zeros((8, 8, 3), np.uint8)] * count for name in ("low\n2 px", "bicubic\n20.0 dB", "SRGAN\n21.0 dB")}
        sr.draw_grid(tmp_path / "g.png", rows, "woods and meadows " * 9)
        drawn = np.asarray(Image.open(tmp_path / "g.png").convert("L"))
        assert all((edge == 255).all() for edge in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]))  # nothing is cut
        sizes.append(drawn.shape)
    assert sizes[0][0] == sizes[1][0] and 400 < sizes[0][1] < sizes[1][1] == 900


def files_of(folder):
    return {str(p.relative_to(folder)): p for p in Path(folder).rglob("*") if p.is_file()}


def test_what_it_writes_is_a_data_set_like_any_other(world, call, weights):
    source = copy_of_tiny(world)
    (source / "classnames.json").write_text(json.dumps({toy.TOY[0]: "thing"}))
    code, out, err = call(sr.main, "apply", "--data", "mine", "--weights", weights, "--model", "toy-RN")
    assert code == 0 and not err and "64 images" in out and "to 64 px" in out
    enlarged = Path("data/mine-srgan")
    expected = {str(Path(name).with_suffix(".png")) for name in files_of(source) if name.endswith(".jpg")}
    assert set(files_of(enlarged)) == expected | {"upsample.json", "classnames.json"}
    # the same pixels whatever the batch, and those of the network, brought to the size
    model = sr.as_model(sr.build(load_file(weights))["srgan"].eval(), "srgan", 0, CPU, torch.float32)
    for name, file in list(files_of(enlarged).items())[::9]:
        if name.endswith(".png"):
            x = torch.from_numpy(np.array(Image.open(source / Path(name).with_suffix(".jpg")))).permute(2, 0, 1)[None]
            found, expected = np.asarray(Image.open(file)).astype(int), upsample(sr.restore(model, x), 64)[0].permute(1, 2, 0).numpy()
            assert found.shape == (64, 64, 3) and np.abs(found - expected).max() <= 6  # 16 bit where the processor is fast at it
    code, out, _ = call(zero_shot.main, "--data", "mine-srgan", "--model", "toy-RN")
    assert code == 0 and "32 test images, 4 classes" in out
    record = json.loads((enlarged / "upsample.json").read_text())
    assert record["images"] == 64 and record["skipped"] == [] and record["args"]["size"] == 64


def test_interrupted_it_goes_on_where_it_was(world, call, weights, monkeypatch):
    args = ("apply", "--data", "tiny", "--weights", weights, "--size", 40)
    assert call(sr.main, *args, "--to", "whole")[0] == 0
    plain, written = Image.fromarray, []

    def interrupt(pixels):
        written.append(0)
        if len(written) > 30:
            raise KeyboardInterrupt
        return plain(pixels)

    monkeypatch.setattr(sr.Image, "fromarray", interrupt)
    with pytest.raises(KeyboardInterrupt):
        call(sr.main, *args, "--to", "cut")
    assert not Path("cut").exists()
    done = {name: p.stat().st_mtime_ns for name, p in files_of(".cut-unfinished").items() if name.endswith(".png")}
    assert 8 <= len(done) <= 30
    (Path(".cut-unfinished") / next(iter(done))).with_name(".77-0.png").write_bytes(b"cut off")
    monkeypatch.setattr(sr.Image, "fromarray", plain)
    code, out, _ = call(sr.main, *args, "--to", "cut")
    assert code == 0 and f"{len(done)} of them done before" in out and not Path(".cut-unfinished").exists()
    whole, cut = files_of("whole"), files_of("cut")
    assert whole.keys() == cut.keys() and all(cut[name].stat().st_mtime_ns == time for name, time in done.items())
    assert all(whole[name].read_bytes() == cut[name].read_bytes() for name in whole if name.endswith(".png"))
    # complete, it does nothing; what has gone is made again, and only that
    lost = next(name for name in cut if name.endswith(".png"))
    cut[lost].unlink()
    assert call(sr.main, *args, "--to", "cut")[0] == 0 and cut[lost].read_bytes() == whole[lost].read_bytes()
    assert all(cut[name].stat().st_mtime_ns == time for name, time in done.items() if name != lost)
    code, out, _ = call(sr.main, *args, "--to", "cut")
    assert code == 0 and "nothing to do" in out


def test_pictures_of_any_kind(world, call, weights):
    source = copy_of_tiny(world)
    folder = source / "Training" / toy.TOY[0]
    Image.new("RGB", (1, 1), "red").save(folder / "one.png")
    Image.new("RGB", (30, 20), "white").save(folder / "wide.jpg")
    Image.new("L", (20, 50), 128).save(folder / "grey.bmp")
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(folder / "clear.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)).save(folder / "large.png")
    (folder / "broken.jpg").write_bytes((folder / "0.jpg").read_bytes()[:100])
    (source / "Training" / "empty class").mkdir()
    code, out, err = call(sr.main, "apply", "--data", "mine", "--weights", weights, "--size", 64)
    assert code == 0 and not err, err
    assert "1 image of 64 px or more: copied" in out
    notes = [line for line in out.splitlines() if line.startswith("note: skipped")]
    assert "2 images skipped" in out and "no test folder" not in out
    assert len(notes) == 2 and any("one.png" in n and "1 x 1 px" in n for n in notes) and any("broken.jpg" in n for n in notes)
    enlarged = Path("data/mine-srgan/Training") / toy.TOY[0]
    sizes = {name: Image.open(enlarged / f"{name}.png").size for name in ("wide", "grey", "clear", "large")}
    assert sizes == {"wide": (96, 64), "grey": (64, 160), "clear": (64, 64), "large": (70, 90)}
    assert np.array_equal(np.asarray(Image.open(enlarged / "large.png")), np.asarray(Image.open(folder / "large.png")))
    assert (enlarged.parent / "empty class").is_dir() and not (enlarged / "one.png").exists()
    record = json.loads(Path("data/mine-srgan/upsample.json").read_text())
    assert record["images"] == 68 and len(record["skipped"]) == 2 and record["copied"] == 1
    assert "nothing to do" in call(sr.main, "apply", "--data", "mine", "--weights", weights, "--size", 64)[1]
    Image.new("RGB", (20, 20)).save(folder / "wide.png")
    code, _, err = call(sr.main, "apply", "--data", "mine", "--weights", weights, "--size", 64, "--to", "new")
    assert code == 2 and "wide.jpg" in err and "wide.png" in err and "one name" in err and err.count("\n") == 1 and not Path("new").exists()


def test_either_generator_and_the_other_dialect_are_applied(world, call, weights):
    torch.save(random_state(), "generator_9.pth")
    common = ("--data", "tiny", "--size", 40, "--precision", "float32")
    for to, args, state, dialect in (
        ("a", ("--weights", weights, "--generator", "pixel"), load_file(weights), None),
        ("b", ("--weights", weights), load_file(weights), None),
        ("c", ("--weights", "generator_9.pth", "--dialect", "pytorch-gan"), random_state(), "pytorch-gan"),
    ):
        assert call(sr.main, "apply", *common, *args, "--to", to)[0] == 0
        net = sr.build(state, dialect)["pixel" if to == "a" else "srgan"].eval()
        file = next(Path("data/tiny/Test").rglob("*.jpg"))
        x = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None]
        expected = upsample(sr.restore(sr.as_model(net, "", 0, CPU, torch.float32), x), 40)[0].permute(1, 2, 0).numpy().astype(int)
        found = np.asarray(Image.open(to / file.relative_to("data/tiny").with_suffix(".png")))
        assert np.abs(found - expected).max() <= 1 and expected.std() > 1
    code, out, _ = call(sr.main, "eval", *common[:2], "--weights", "generator_9.pth", "--dialect", "pytorch-gan")
    assert code == 0 and "srgan - bicubic" in out and "pixel" not in out and "below 46 or above 182" in out


def test_test_images_have_no_say_and_nor_do_labels(world, call):
    source = copy_of_tiny(world)
    args = ("train", "--data", "mine", *SMALL, "--epochs", 1, "--adversarial", 1)
    assert call(sr.main, *args, "--save", "a.safetensors")[0] == 0
    for file in (source / "Test").rglob("*.jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)).save(file)
    assert call(sr.main, *args, "--save", "b.safetensors")[0] == 0
    a, b = load_file("a.safetensors"), load_file("b.safetensors")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_content_may_be_features_of_vgg(world, call, monkeypatch):
    """With a small network in place of VGG19, whose half a gigabyte is not at hand here."""
    from types import SimpleNamespace

    torch.manual_seed(0)
    net = SimpleNamespace(features=nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU()).requires_grad_(False))
    asked = []
    vgg = SimpleNamespace(visual=net, normalise=lambda x: x / 255 - 0.5)
    monkeypatch.setattr(sr, "load_model", lambda name, *a, **k: asked.append(name) or vgg)
    args = ("train", "--data", "tiny", *SMALL, "--epochs", 1, "--adversarial", 2)
    for content in ("pixel", "vgg"):
        assert call(sr.main, *args, "--content", content, "--save", f"{content}.safetensors")[0] == 0
    a, b = load_file("pixel.safetensors"), load_file("vgg.safetensors")
    assert asked == ["vgg19"] and torch.equal(a["pixel.conv2.0.weight"], b["pixel.conv2.0.weight"])
    assert not torch.equal(a["srgan.conv3.0.weight"], b["srgan.conv3.0.weight"])


def test_images_that_training_has_seen_are_no_test(world, call):
    source = copy_of_tiny(world)
    shutil.rmtree(source / "Test")
    train = ("train", "--data", "mine", *SMALL, "--batch", 4, "--epochs", 1, "--adversarial", 0, "--save", "g.safetensors", "--seed", 1)
    assert call(sr.main, *train)[0] == 0
    assert call(sr.main, "eval", "--data", "mine", "--weights", "g.safetensors", "--seed", 1)[0] == 0
    code, _, err = call(sr.main, "eval", "--data", "mine", "--weights", "g.safetensors")
    assert code == 2 and "--seed 1" in err and err.count("\n") == 1


def test_what_cannot_be_read_stops_it(world, call, weights, monkeypatch):
    """A disk or a network folder that fails is no broken picture: nothing is skipped for it."""
    source, plain = copy_of_tiny(world), sr.image_sizes
    lost = next((source / "Test").rglob("*.jpg"))

    def vanish(data, files):
        sizes = plain(data, files)
        lost.unlink()
        return sizes

    monkeypatch.setattr(sr, "image_sizes", vanish)
    code, out, err = call(sr.main, "apply", "--data", "mine", "--weights", weights)
    assert code == 2 and lost.name in err and "goes on" in err and err.count("\n") == 1 and "skipped" not in out
    assert not Path("data/mine-srgan").exists()


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_bad_files_and_folders_are_one_line_and_overwrite_nothing(world, call, weights):
    torch.save(random_state(), "gan.pth")
    torch.save({"state": Bomb()}, "bomb.pth")
    torch.save([1, 2], "list.pth")
    wrong = random_state()
    wrong["conv2.0.weight"] = wrong["conv2.0.weight"][:, :4]
    torch.save(wrong, "wrong.pth")
    torch.save({key: tensor for key, tensor in random_state().items() if "conv3" not in key}, "short.pth")
    torch.save(random_state() | {"conv3.0.bias": torch.tensor([0.0, float("nan"), 0.0])}, "nan.pth")
    shutil.copytree("data/tiny/Test", "broken/Training")
    for file in Path("broken").rglob("*.jpg"):
        file.write_bytes(b"no picture")
    for name, text in (("list", "[]"), ("odd", '{"about": []}'), ("number", '{"about": {"data": "tiny"}, "skipped": 5}')):
        Path(name).mkdir()
        Path(name, "upsample.json").write_text(text)
    Path("dangling").symlink_to("nowhere")
    Path("busy").mkdir()
    Path("busy/mine.txt").write_text("mine")
    assert call(sr.main, "apply", "--data", "tiny", "--weights", weights, "--to", "there", "--size", 40)[0] == 0
    Path("there/mine.txt").write_text("mine")
    before = {name: p.read_bytes() for name, p in files_of("there").items()}
    gan = ("--dialect", "pytorch-gan")
    rows = [f"{file},{file.parent.name}" for file in Path("data/tiny/Test").glob("*/*")]  # whose pictures no --to surrounds
    Path("t.csv").write_text("\n".join(["path,label", *rows]))
    for args, words in (
        (("--weights", "none.pth"), ("none.pth", "no such file")),
        (("--weights", "gan.pth"), ("gan.pth", "--dialect pytorch-gan")),
        (("--weights", "bomb.pth", *gan), ("bomb.pth", "not a readable file of tensors")),
        (("--weights", "list.pth", *gan), ("list.pth", "not a readable file of tensors")),
        (("--weights", "wrong.pth", *gan), ("wrong.pth", "conv2.0.weight")),
        (("--weights", "short.pth", *gan), ("short.pth", "conv3.0.weight")),
        (("--weights", "nan.pth", *gan), ("nan.pth", "not finite")),
        (("--weights", weights, "--to", "list"), ("list", "not made by this script")),
        (("--weights", weights, "--to", "odd"), ("odd", "not made by this script")),
        (("--weights", weights, "--to", "number"), ("number", "not made by this script")),
        (("--weights", weights, "--to", "dangling"), ("dangling", "not made by this script")),
        (("--weights", weights, "--to", "/proc/x"), ("/proc/", "cannot be written")),
        (("--weights", weights, "--to", "there", "--size", "48", "--restart"), ("there/mine.txt", "not made by this script")),
        (("--weights", "weights/toy-RN.pt"), ("toy-RN.pt", "pixel")),
        (("--weights", weights, *gan), ("sr.safetensors", "conv1.0.weight")),
        (("--weights", weights, "--to", "data/tiny"), ("--to data/tiny", "--data")),
        (("--weights", weights, "--to", "data/tiny/Training/x"), ("--to", "lies in it")),
        (("--weights", weights, "--data", "t.csv", "--to", "."), ("--to .", "name the folder")),
        (("--weights", weights, "--data", "t.csv", "--to", ".."), ("--to ..", "name the folder")),
        (("--weights", weights, "--to", "busy"), ("busy", "not made by this script")),
        (("--weights", weights, "--to", "busy/mine.txt"), ("mine.txt", "not made by this script")),
        (("--weights", weights, "--to", "there", "--size", "48"), ("there", "--size")),
        (("--weights", weights, "--to", "there", "--generator", "pixel", "--size", "40"), ("there", "--generator")),
        (("--weights", weights, "--model", "toy-VIT2"), ("toy-VIT2", "toy-ViT")),
    ):
        code, _, err = call(sr.main, "apply", "--data", "tiny", *args)
        assert code == 2 and all(word in err for word in words) and err.count("\n") == 1, (args, err)
    code, out, err = call(sr.main, "apply", "--data", "./broken", "--weights", weights)
    assert code == 2 and "no image can be decoded" in err and err.count("\n") == 1 and not Path("data/broken-srgan").exists()
    assert not Path("executed").exists() and not Path("data/tiny-srgan").exists() and not list(Path().glob(".*"))
    assert {name: p.read_bytes() for name, p in files_of("there").items()} == before and Path("busy/mine.txt").read_text() == "mine"


def test_bad_training_input_is_one_line(world, call):
    one = world / "dots"
    for i in range(4):
        (one / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1, 1)).save(one / "a" / f"{i}.png")
    for args, word in (
        (("train", "--data", "./dots", "--save", "x.safetensors"), "1 px"),
        (("train", "--data", "tiny", "--save", "x.pth"), ".safetensors"),
        (("train", "--data", "tiny", "--save", "x.safetensors", "--lr", "7"), "--lr"),
        (("train", "--data", "tiny", "--save", "x.safetensors", "--batch", "99"), "--batch 99"),
        (("train", "--data", "tiny", "--save", "x.safetensors", "--groups", "."), "no train images"),
        (("train", "--data", "tyo", "--save", "x.safetensors"), "tyo"),
        (("train", "--data", "tiny"), "--save"),
        (("train", "--data", "tiny", "--save", "x.safetensors", "--content", "vgg", "--adversarial", "0"), "--content vgg"),
        (("apply", "--data", "tiny", "--weights", "x", "--size", "64", "--model", "toy-RN"), "--model"),
        ((), "task"),
    ):
        code, _, err = call(sr.main, *args)
        assert code == 2 and word in err.splitlines()[-1] and "Traceback" not in err, args
    assert not list(Path().glob("x*"))
