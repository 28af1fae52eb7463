"""Models against independent loaders, and what must never be loaded."""

import json
import math
import os
import re
import shutil
import signal
import tracemalloc
from pathlib import Path

import clip
import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
import torchvision
from clip.model import CLIP as Network, QuickGELU
from conftest import random_weights, refused
from PIL import Image
from safetensors.torch import save_file

import common
import toy
from common import (
    _OPENAI as OPENAI,
    CLIP,
    _load_images as load_images,
    _tensors_sha256 as tensors_sha256,
    clip_tokens,
    load_data,
    load_model,
    model_name,
    upsample,
    without_draws,
)


def openai_shape(name, seed=0):
    """A random network in the shape of an OpenAI model, with a text side small enough for a test.

    The image side is what parity is about; weights are scaled so that deep random features still depend on the picture.
    """
    embed, size, layers, width, patch = CLIP[name][1]
    torch.manual_seed(seed)
    net = Network(embed, size, layers, width, patch, 77, 49408, 128, 2, 1).eval()
    for module in net.visual.modules():
        if hasattr(module, "bn3"):
            torch.nn.init.ones_(module.bn3.weight)
    return net


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, trained_toys):
    """Data sets of 32 px, 100 px, 224 px and any size: made up, or (but the first) real where $REAL_DATA is set."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "drawn").symlink_to(trained_toys / "data" / "drawn")
    if real := os.environ.get("REAL_DATA"):
        for name, split in (("fruits360", "Test"), ("sports", "test"), ("simpsons", "Test")):
            files = sorted(p for p in (Path(real) / name / split).rglob("*.*"))
            for file in files[:: len(files) // 60][:60]:
                target = root / name / "test" / file.parent.name / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
        return root
    rng = np.random.default_rng(0)
    for name, sizes in (("fruits360", [(100, 100)]), ("sports", [(224, 224)]), ("simpsons", [(300, 200), (150, 260), (500, 333)])):
        for i in range(24):
            w, h = sizes[i % len(sizes)]
            small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
            target = root / name / "test" / "ab"[i % 2] / f"{i}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            small.resize((w, h), Image.BICUBIC).save(target, quality=95)
    return root


def centred_cosine(a, b):
    """Per image, after subtracting the mean feature: plain cosine of random networks is .998 for any two pictures."""
    return F.cosine_similarity(a - b.mean(0), b - b.mean(0))


def plain(file):
    """Whether clip's own preprocessing treats a file as ours does: no transparency, no palette."""
    with Image.open(file) as image:
        return image.mode in ("RGB", "L")


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("RN50", "ViT-B/32")), "toy-ViT", "toy-RN"])
def test_parity_with_clip_load(name, pictures, tmp_path, monkeypatch, trained_toys):
    """Our loader, decoder and batches against clip.load and its own Pillow preprocessing, one image at a time."""
    monkeypatch.chdir(tmp_path)
    path, published = trained_toys / "weights" / f"{name}.pt", not name.startswith("toy-")
    if published:
        path = tmp_path / "net.pt"
        torch.save(toy.compact(openai_shape(name).state_dict()), path)  # float16 as OpenAI's: clip.load rounds to it
    model = load_model(name, "cpu", path, "float32", act="quickgelu")
    net, preprocess = clip.load(str(path), device="cpu")

    words = ["red apple", "blue plum", "cat", "dog"]
    z = model.classifier(words, ["a photo of a {}."])
    with torch.inference_mode():
        text = net.encode_text(clip.tokenize([f"a photo of a {w}." for w in words]))
    assert torch.allclose(z, F.normalize(text, dim=1), atol=1e-4)

    for data in ("drawn", "fruits360", "sports", "simpsons"):
        images = load_images(load_data(str(pictures / data), type=""), "test", model.size)
        mask = np.array([plain(pictures / data / p) for p in images.paths])
        images = images.take(mask & (np.cumsum(mask) % 6 == 0) if published else mask)
        ours = model.features(images)[0]
        with torch.inference_mode():
            theirs = torch.cat([net.encode_image(preprocess(Image.open(pictures / data / p))[None]) for p in images.paths])
        assert centred_cosine(ours, theirs).min() >= 0.9999, data
        guess, right = (F.normalize(x, dim=1) @ z.T for x in (ours, theirs))
        assert (guess.argmax(1) == right.argmax(1)).float().mean() >= 0.995, data

        if data == "drawn":  # the same measure tells each of the known mistakes
            x = torch.cat(list(images.batches(64)))
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
            imagenet = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1), torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
            bilinear = F.interpolate(x, size=(model.size,) * 2, mode="bilinear")
            with torch.inference_mode():
                wrong = {"bilinear": model.visual((bilinear / 255 - mean) / std)}
                wrong["normalisation"] = model.visual((upsample(x, model.size) / 255 - imagenet[0]) / imagenet[1])
            if name == "ViT-B/32":  # the toy's activations are too small after seconds of training for this one
                gelu = load_model(name, "cpu", path, "float32", act="gelu")
                assert not any(isinstance(m, QuickGELU) for m in gelu.net.modules())
                wrong["gelu"] = gelu.encode_image(x)
            for mistake, f in wrong.items():
                assert centred_cosine(f, theirs).min() < 0.9999, mistake


@pytest.mark.parametrize(
    "name, theirs", [pytest.param("RN50", "RN50-quickgelu", marks=pytest.mark.slow), ("ViT-B/32", "ViT-B-32-quickgelu")]
)
def test_parity_with_open_clip_safetensors(name, theirs, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = open_clip.create_model(theirs).eval()
    save_file(net.state_dict(), tmp_path / "open_clip_model.safetensors")
    model = load_model(name, "cpu", tmp_path / "open_clip_model.safetensors", "float32", act="quickgelu")
    images = load_images(load_data(str(pictures / "sports"), type=""), "test", model.size)
    x = next(images.batches(8))
    tokens = clip.tokenize(["a photo of a cat.", "a dog"])
    with torch.inference_mode():
        a, b = model.encode_image(x), net.encode_image(model.inputs(x))
        assert centred_cosine(a, b).min() > 0.9999
        assert F.cosine_similarity(model.encode_text(tokens), net.encode_text(tokens)).min() > 0.9999


def test_shapes_are_open_clips():
    """The table of OpenAI's shapes against open_clip's configuration of each."""
    for name, (published, (embed, size, layers, width, patch)) in CLIP.items():
        if not published:  # a toy
            continue
        theirs = open_clip.get_model_config(re.sub("[/@]", "-", name).removesuffix("px"))
        vision = theirs["vision_cfg"]
        found = (theirs["embed_dim"], vision["image_size"], vision["layers"], vision["width"], vision.get("patch_size"))
        assert found == (embed, size, list(layers) if isinstance(layers, tuple) else layers, width, patch)


WIDTHS = {
    "mobilenet_v2": 1280,
    "squeezenet1_1": 512,
    "alexnet": 4096,
    "convnext_tiny": 768,
    "resnet18": 512,
    "vit_b_16": 768,
    "inception_v3": 2048,
}


@pytest.mark.parametrize("name, width", WIDTHS.items())
def test_torchvision_features_are_flat(name, width, tmp_path):
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None).eval()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    before = torch.get_rng_state()
    model = load_model(name, "cpu", tmp_path / "w.pth", "float32")
    if name in ("alexnet", "squeezenet1_1"):  # no weights are drawn only to be replaced; others draw some in several steps
        assert torch.equal(before, torch.get_rng_state())
    x = torch.randint(0, 256, (2, 3, 50, 50), dtype=torch.uint8)
    f = model.encode_image(x)
    assert f.shape == (2, width) == (2, model.width) and not model.has_text
    if name in ("mobilenet_v2", "resnet18", "convnext_tiny"):  # the removed layer on top gives the network's own answer
        last = [m for m in net.modules() if isinstance(m, torch.nn.Linear)][-1]
        with torch.inference_mode():
            assert torch.allclose(last(f), net(model.inputs(x)), atol=1e-4)
    t = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    assert (model.size, list(model.mean), list(model.std)) == (t.crop_size[0], t.mean, t.std)


def test_real_mobilenet(real, tmp_path, monkeypatch):
    """Real ImageNet weights through our batches against torchvision's own network and Pillow."""
    monkeypatch.chdir(tmp_path)
    weights = real / "weights" / "mobilenet_v2.pth"
    model = load_model("mobilenet_v2", "cpu", weights, "float32")
    images = load_images(load_data(str(real / "fruits360")), "test", model.size)
    rows = list(range(0, len(images.rows), 60))
    net = torchvision.models.mobilenet_v2()
    net.load_state_dict(torch.load(weights, weights_only=True))
    net.classifier = torch.nn.Identity()
    pixels = [
        torchvision.transforms.functional.to_tensor(Image.open(real / "fruits360" / images.paths[i]).resize((224, 224), Image.BICUBIC))
        for i in rows
    ]
    with torch.inference_mode():
        theirs = net.eval()((torch.stack(pixels) - torch.tensor(model.mean).view(3, 1, 1)) / torch.tensor(model.std).view(3, 1, 1))
        ours = model.encode_image(torch.from_numpy(images.pixels[rows]).permute(0, 3, 1, 2))
    assert centred_cosine(ours, theirs).min() > 0.999


def test_names():
    assert model_name("vit-b-32") == model_name("ViT-B/32") == "ViT-B/32"
    assert model_name("ViT-L-14-336px") == "ViT-L/14@336px"
    assert model_name("toy-vit") == "toy-ViT" and model_name("resnet101") == "resnet101"


@pytest.mark.parametrize(
    "wrong, right", [("ViT-B32", "ViT-B/32"), ("resnet-50", "resnet50"), ("RN51", "RN50"), ("mobilenetv2", "mobilenet_v2")]
)
def test_wrong_name_prints_the_nearest(wrong, right, capsys):
    with pytest.raises(SystemExit) as end:
        model_name(wrong)
    error = capsys.readouterr().err
    assert end.value.code == 2 and right in error and error.count("\n") == 1


def test_upsampling_on_the_device_is_pillows():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (4, 100, 100, 3), np.uint8)
    pillow = np.stack([np.asarray(Image.fromarray(a).resize((224, 224), Image.BICUBIC)) for a in x]).astype(int)
    ours = upsample(torch.from_numpy(x).permute(0, 3, 1, 2), 224).permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(ours - pillow).max() <= 2


def test_frozen_model_stays_frozen(world):
    """Batch-norm statistics do not move when features are extracted, and nothing asks for a gradient."""
    model = load_model("toy-RN", "cpu")
    before = {k: v.clone() for k, v in model.net.state_dict().items()}
    assert not model.net.training and not any(p.requires_grad for p in model.net.parameters())
    assert not any(m.training for m in model.net.modules())
    for _ in range(3):
        model.encode_image(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    assert all(torch.equal(v, before[k]) for k, v in model.net.state_dict().items())


# ---- weights that must not pass -------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return exec, ("open('exploded', 'w')",)


def test_code_in_weights_is_never_run(tmp_path, capsys, world):
    torch.save({"a": Bomb()}, tmp_path / "bomb.pt")
    assert "not a readable file of tensors" in refused(capsys, "ViT-B/32", "cpu", tmp_path / "bomb.pt", act="quickgelu")
    assert not (world / "exploded").exists()
    (tmp_path / "cut.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{")
    assert "not a readable file" in refused(capsys, "RN50", "cpu", tmp_path / "cut.safetensors", act="quickgelu")
    assert "no such file" in refused(capsys, "RN50", "cpu", tmp_path / "none.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    assert "not a CLIP checkpoint" in refused(capsys, "RN50", "cpu", tmp_path / "other.pt", act="quickgelu")
    assert "not the weights of resnet18" in refused(capsys, "resnet18", "cpu", tmp_path / "other.pt")


def test_torchscript_only_by_hash(tmp_path, capsys, world, monkeypatch):
    """An archive in OpenAI's form is refused, and opened once its hash is one of theirs."""
    net, _ = clip.load("weights/toy-ViT.pt", device="cpu")
    path = tmp_path / "archive.pt"
    torch.jit.save(torch.jit.trace(net.visual, torch.zeros(1, 3, 64, 64)), path)
    assert "can carry code" in refused(capsys, "toy-ViT", "cpu", path)
    monkeypatch.setitem(OPENAI, common.file_sha256(path), "toy-ViT")
    _, state = common.read_weights(path)
    assert torch.equal(state["conv1.weight"], net.visual.conv1.weight)


def test_clip_file_of_unknown_activation_must_say(tmp_path, capsys):
    with without_draws():
        net = openai_shape("ViT-B/32")
    torch.save(net.state_dict(), tmp_path / "laion.pt")
    assert "--act" in refused(capsys, "ViT-B/32", "cpu", tmp_path / "laion.pt")
    assert "holds another network: ViT-B/32" in refused(capsys, "ViT-B/16", "cpu", tmp_path / "laion.pt", act="quickgelu")


def test_weights_that_do_not_fit(world, capsys):
    assert "holds another network: toy-RN" in refused(capsys, "toy-ViT", "cpu", "weights/toy-RN.pt")
    assert "--act" in refused(capsys, "toy-ViT", "cpu", act="gelu")
    (world / "empty.pt").touch()
    assert "not a readable file" in refused(capsys, "toy-ViT", "cpu", "empty.pt")


def test_without_network_one_line_says_where_to_put_what(world, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(world))
    monkeypatch.setenv("TORCH_HOME", str(world))
    error = refused(capsys, "RN101", "cpu")
    assert "timm/resnet101_clip.openai" in error and "--weights" in error
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    error = refused(capsys, "resnet50", "cpu")
    assert "resnet50-" in error and f"put it at {world}" in error


def test_openais_own_file_is_found_and_a_wrong_one_is_not(world, monkeypatch):
    monkeypatch.setenv("HOME", str(world))
    folder = world / ".cache" / "clip"
    folder.mkdir(parents=True)
    (folder / "RN50.pt").write_bytes(b"half-downloaded")
    with pytest.raises(SystemExit):
        common._weights_file("RN50")
    monkeypatch.setitem(OPENAI, common.file_sha256(folder / "RN50.pt"), "RN50")
    assert common._weights_file("RN50") == folder / "RN50.pt"


# ---- features and captions ------------------------------------------------------------------------------------------


def test_feature_cache_follows_everything_it_depends_on(world, monkeypatch):
    data = load_data("tiny")
    images = load_images(data, "test", 64)

    def folders():
        return set((world / "cache" / "features").iterdir())

    model = load_model("toy-ViT", "cpu", precision="float32")
    first, labels = model.features(images)
    assert first.dtype == torch.float32 and first.shape == (32, 64) and labels.tolist() == [c for c in range(4) for _ in range(8)]
    known = folders()
    again, _ = model.features(images)
    assert torch.equal(first, again) and folders() == known
    torch.save(random_weights("toy-ViT", seed=1), world / "other.pt")
    variants = [
        load_model("toy-ViT", "cpu", world / "other.pt", "float32"),  # weights
        load_model("toy-ViT", "cpu", precision="bf16"),  # precision
        load_model("toy-ViT", "cpu", "weights/toy-ViT.pt", "float32", act="gelu"),  # network
        load_model("toy-RN", "cpu", precision="float32"),  # model
        load_model("toy-imagenet", "cpu", precision="float32"),
    ]
    for variant in variants:
        x, _ = variant.features(images)
        assert len(folders()) == len(known) + 1 and not torch.equal(x, first)
        known = folders()
    model.mean = (0.5, 0.5, 0.5)  # input pipeline
    model.features(images)
    assert len(folders()) == len(known) + 1
    (world / "data").unlink()  # pixels
    shutil.copytree((world / "weights").resolve().parent / "data", world / "data")
    Image.new("RGB", (32, 32)).save(world / "data" / "tiny" / images.paths[0])
    x, _ = variants[0].features(load_images(load_data("tiny"), "test", 64))
    assert len(folders()) == len(known) + 2 and not torch.equal(x[0], variants[0].features(images)[0][0])


def test_interrupted_features_go_on(world, monkeypatch):
    monkeypatch.setattr(common, "_CHUNK", 10)
    images = load_images(load_data("tiny"), "test", 64)
    model = load_model("toy-ViT", "cpu", precision="float32")
    model.batch_asked = 4
    whole, _ = model.features(images)
    for file in sorted((world / "cache" / "features").rglob("*.npz"))[2:]:
        file.unlink()  # as if stopped after two chunks
    seen = []
    encode = common.Model.encode_image
    monkeypatch.setattr(common.Model, "encode_image", lambda self, x: seen.append(len(x)) or encode(self, x))
    model.batch_asked = 4
    again, _ = model.features(images)
    assert torch.equal(whole, again) and sum(seen) == 12
    assert not list((world / "cache").rglob(".*"))


@pytest.fixture
def read_captions(monkeypatch):
    """How many captions a network has been given, one number a batch."""
    counts, encode = [], common.Model.encode_text
    monkeypatch.setattr(common.Model, "encode_text", lambda self, tokens: counts.append(len(tokens)) or encode(self, tokens))
    return counts


def test_captions_are_kept_under_all_that_they_depend_on(world, read_captions, capsys):
    words, templates = ["red apple", "plum"], ["a {}.", "many {}, a type of {type}."]
    model = load_model("toy-ViT", "cpu", precision="float32")
    first = model.classifier(words, templates, "fruit", each=True)
    assert read_captions == [4]
    assert torch.equal(model.classifier(words, templates, "fruit"), F.normalize(first.mean(0), dim=1)) and read_captions == [4]
    model.classifier(words, templates, "fruit", keep=False)
    model.embed(["a plum"])
    assert read_captions == [4, 4, 1]  # whose captions these are is not known
    torch.save(random_weights("toy-ViT", seed=1), world / "other.pt")
    others = [
        load_model("toy-ViT", "cpu", world / "other.pt", "float32"),
        load_model("toy-ViT", "cpu", precision="bf16"),
        load_model("toy-ViT", "cpu", "weights/toy-ViT.pt", "float32", act="gelu"),
        load_model("toy-RN", "cpu", precision="float32"),
    ]
    for other in others:
        assert not torch.equal(other.classifier(words, templates, "fruit", each=True), first)
    assert not torch.equal(model.classifier(words, templates, "bird", each=True), first)
    assert len(read_captions) == 8
    for file in (world / "cache/captions").iterdir():
        file.write_bytes(file.read_bytes()[:-99])
    assert torch.equal(model.classifier(words, templates, "fruit", each=True), first)
    assert len(read_captions) == 9 and capsys.readouterr().out.count("is damaged") == 1
    # of a text side that is not a part of the network its weights are not known
    model.text = lambda tokens: 2 * F.one_hot(tokens[:, 1] % 64, 64)
    assert not torch.equal(model.classifier(words, templates, "fruit", each=True), first) and len(read_captions) == 10


@pytest.mark.parametrize("name", ["toy-ViT", "toy-RN"])
def test_what_is_frozen_computes_the_same_and_rounds_weights_once(name, world):
    images, captions = load_images(load_data("tiny"), "test", 64)[:], clip_tokens(["a photo of a red apple.", "plum"])

    def both(model):
        with torch.inference_mode(), model.autocast():
            return model.encode_image(images), model.visual(model.inputs(images)), model.encode_text(captions), model.text(captions)

    model = load_model(name, "cpu", precision="float32")
    image, plain_image, text, plain_text = both(model)
    assert torch.allclose(image, plain_image, rtol=0, atol=1e-5 * plain_image.abs().max().item())
    assert torch.allclose(text, plain_text, rtol=0, atol=1e-5 * plain_text.abs().max().item()) and not torch.equal(text, plain_text)
    slow = (QuickGELU, torch.nn.BatchNorm2d)
    assert any(isinstance(m, slow) for m in model.visual.modules()) and not any(isinstance(m, slow) for m in model.frozen.modules())

    # the same tensors after rounding, whoever rounds them; and what is saved or trained is neither rounded nor scaled
    rounded, before = load_model(name, "cpu", precision="bf16"), tensors_sha256(model.net.state_dict())
    rounded_image, _, rounded_text, _ = both(rounded)
    with torch.inference_mode(), rounded.autocast():
        assert torch.equal(rounded_image, model.frozen(model.inputs(images)).float()) and not torch.equal(rounded_image, image)
        assert torch.equal(rounded_text, model.frozen_text(captions).float()) and not torch.equal(rounded_text, text)
    assert {p.dtype for p in rounded.frozen.parameters()} == {torch.float32, torch.bfloat16}
    assert tensors_sha256(rounded.net.state_dict()) == before

    # a text side that is trained is not that of before
    model.net.requires_grad_(True)
    with torch.no_grad():
        [p.mul_(1.1) for p in model.net.parameters()]
    with model.still():  # as in validation
        still = both(model)[0]
    trained = both(model)
    assert not torch.equal(still, trained[0]) and torch.allclose(still, trained[0], atol=1e-5 * trained[0].abs().max().item())
    assert torch.equal(trained[0], trained[1].float()) and torch.equal(trained[2], trained[3].float()) and model.frozen is model.visual
    model.net.requires_grad_(False)
    again = both(model)
    assert torch.equal(again[0], still)
    with model.still():
        both(model)
    with torch.no_grad():
        [p.mul_(1.1) for p in model.net.parameters()]
    assert not torch.equal(both(model)[0], still)  # as when finetune.py puts the start back
    assert torch.allclose(again[2], trained[2], atol=1e-5 * trained[2].abs().max().item()) and not torch.allclose(again[2], text, atol=0.01)


def test_interrupted_captions_go_on(world, read_captions, monkeypatch):
    monkeypatch.setattr(common, "_CHUNK", 4)
    words, templates = ["red apple", "plum", "blue melon"], ["a {}.", "many {}.", "the {}.", "a small {}."]
    model = load_model("toy-RN", "cpu", precision="float32")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model, "finite", lambda x, what: x if len(read_captions) < 3 else signal.raise_signal(signal.SIGINT))
        model.classifier(words, templates)
    model.classifier(words, templates)
    assert read_captions == [4, 4, 4, 4] and not list((world / "cache").rglob(".*"))


@pytest.mark.parametrize(
    "device, batches",
    [("cpu", {64: 256, 224: 32, 336: 14, 600: 4}), ("meta", {64: 256, 224: 256, 336: 113, 600: 35})],
)
def test_a_batch_of_large_pictures_holds_no_more_pixels(device, batches):
    for size, batch in batches.items():
        model = common.Model("x", None, None, size, (0,) * 3, (1,) * 3, 1, "", torch.device(device), torch.float32)
        assert model.batch == batch and (batch == 256 or batch * size**2 <= 256 * 224**2)


class Greedy(torch.nn.Module):
    """The mean colour, of no more than `most` pictures at a time: for more it asks for memory that no machine has."""

    def __init__(self, most):
        super().__init__()
        self.most, self.asked = most, []

    def forward(self, x):
        self.asked.append(len(x))
        if len(x) > self.most:
            torch.empty(1 << 50)
        return x.mean((2, 3))


@pytest.mark.parametrize("most, asked", [(16, [32] + [16] * 2), (15, [32, 16])])
def test_out_of_memory_halves_the_batch_once(most, asked, world, capsys):
    model = load_model("toy-imagenet", "cpu", precision="float32")
    model.visual, model.width = Greedy(most), 3
    images = load_images(load_data("tiny"), "test", 64)
    if most == 16:
        model.batch_asked = 32
        x, _ = model.features(images)
        assert torch.allclose(x, torch.cat([model.visual(model.inputs(b)) for b in images.batches(8)]), atol=1e-6)
        assert "going on with 16" in capsys.readouterr().out and model.batch == 16
    else:
        with pytest.raises(SystemExit) as end:
            model.batch_asked = 32
            model.features(images)
        error = capsys.readouterr().err
        assert end.value.code == 2 and "--batch" in error and error.count("\n") == 1
        assert not list((world / "cache" / "features").rglob("*.npz"))
    assert model.visual.asked[: len(asked)] == asked


def test_features_are_held_once(world, monkeypatch):
    """Peak memory while cached features are read stays near their own size."""
    monkeypatch.setattr(common, "_CHUNK", 4)
    model, images = load_model("toy-imagenet", "cpu", precision="float32"), load_images(load_data("tiny"), "test", 64)
    model.visual = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(256), torch.nn.Flatten())
    model.width = 3 * 256 * 256  # of 32 images 25 MB
    model.batch_asked = 4
    model.features(images)
    tracemalloc.start()
    x, _ = model.features(images)
    peak = tracemalloc.get_traced_memory()[1]  # of numpy: torch's own memory is not traced
    tracemalloc.stop()
    assert x.shape == (32, model.width) and peak < x.nbytes / 4


def test_what_is_not_finite_is_neither_cached_nor_used(world, capsys):
    """A network that overflows in 16 bits, and weights that are broken."""
    state = random_weights("toy-ViT")
    state["visual.ln_post.weight"] *= 3e4  # a channel of 4 is beyond float16, and within float32
    state["ln_final.weight"] *= 3e4
    torch.save(state, world / "large.pt")
    state["visual.ln_post.weight"][0] = state["ln_final.weight"][0] = math.nan
    torch.save(state, world / "broken.pt")
    images = load_images(load_data("tiny"), "test", 64)
    for file, precision, hint in (("large.pt", "fp16", "try --precision float32"), ("broken.pt", "float32", "are these its weights?")):
        model = load_model("toy-ViT", "cpu", file, precision)
        for compute in (lambda model=model: model.features(images), lambda model=model: model.embed(["a plum"])):
            with pytest.raises(SystemExit) as end:
                compute()
            error = capsys.readouterr().err
            assert end.value.code == 2 and error.count("\n") == 1 and "toy-ViT" in error and hint in error
    assert not list((world / "cache" / "features").rglob("*.npz"))
    model = load_model("toy-ViT", "cpu", "large.pt", "float32")
    x, _ = model.features(images)
    assert x.isfinite().all() and model.embed(["a plum"]).isfinite().all()
    (file,) = (world / "cache" / "features").rglob("*.npz")
    np.savez(file, x=np.full_like(x, math.nan))  # as versions before this check have left them
    assert model.features(images)[0].equal(x) and "damaged (not finite)" in capsys.readouterr().out


def test_what_is_not_taken_from_the_package_clip_is_what_it_has():
    urls, colours = clip.clip._MODELS, clip.clip._transform(224).transforms[-1]
    assert {url.split("/")[-2]: name for name, url in urls.items()} == OPENAI
    assert all(url.endswith(f"/{common.spelled(name)}.pt") for name, url in urls.items())
    assert (colours.mean, colours.std) == common.CLIP_COLOURS
    texts = [
        "",
        "a photo of a Green apple, don't!",
        "caf\u00e9 &amp; \u0442\u0435\u0441\u0442",
        "one<|endoftext|>two",
        "word " * 76,
        "word " * 600,
    ]
    for some in (texts[:3], texts[3:4], texts):
        ours, theirs = common.clip_tokens(some), clip.tokenize(some, truncate=True)
        for mine, other in zip(ours, theirs):
            end = other.argmax() + 1
            assert mine.argmax() + 1 == end and mine[:end].equal(other[:end])
        assert ours.dtype == theirs.dtype and ours.shape[1] == theirs.argmax(1).max() + 1


def test_captions_are_read_at_end_of_text(world, capsys):
    model = load_model("toy-ViT", "cpu", precision="float32")
    texts = ["a photo of a green apple.", "many", "word " * 90]
    ours = model.embed(texts)
    assert "1 of 3 captions cut to 77 tokens" in capsys.readouterr().out
    net, _ = clip.load("weights/toy-ViT.pt", device="cpu")
    with torch.inference_mode():
        theirs = F.normalize(net.encode_text(clip.tokenize(texts, truncate=True)), dim=1)
    assert torch.allclose(ours, theirs, atol=1e-5)
    # padding before end-of-text, the seed's mistake, gives something else
    wrong = clip.tokenize(texts[:1])
    end = wrong.argmax().item()
    wrong[0, 76], wrong[0, end] = wrong[0, end].item(), 0
    assert F.cosine_similarity(model.encode_text(wrong), ours[:1]).item() < 0.99


def test_class_embedding_is_the_normalised_mean_of_normalised_captions(world):
    model = load_model("toy-ViT", "cpu", precision="float32")
    templates = ["a photo of a {}.", "many {}, a type of {type}."]
    z = model.classifier(["red apple", "plum"], templates, "fruit")
    for row, word in zip(z, ("red apple", "plum")):
        parts = model.embed([f"a photo of a {word}.", f"many {word}, a type of fruit."])
        assert math.isclose(row.norm().item(), 1, abs_tol=1e-5)
        assert torch.allclose(row, F.normalize(parts.sum(0), dim=0), atol=1e-5)


@pytest.mark.parametrize("prompts, type", [(["no braces"], ""), (["a {} of {type}."], ""), (["missing.json"], ""), (["bad.json"], "")])
def test_bad_prompts_are_one_line(prompts, type, world, capsys):
    (world / "bad.json").write_text(json.dumps({"templates": []}))
    model = load_model("toy-ViT", "cpu")
    with pytest.raises(SystemExit) as end:
        model.classifier(["x"], common.read_templates(prompts, type)[0], type)
    assert end.value.code == 2 and "prompt" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_gpu_sees_batches_of_one_size(tiny, monkeypatch):
    """That of the largest before; also of half the size, where its memory does not suffice; each picture keeps its features."""
    monkeypatch.chdir(tiny)
    model = load_model("toy-RN", "cuda", precision="float32")
    x = torch.randint(0, 256, (600, 3, 64, 64), dtype=torch.uint8)
    plain, seen = model.visual, []
    model.encode_image(x[:1])
    assert model._fullest == 1  # nobody waits for 256 where one is asked for

    def small(y):
        seen.append(len(y))
        if len(y) > 128:
            raise torch.OutOfMemoryError
        return plain(y)

    whole = torch.cat([model.encode_image(part) for part in x.split(256)])
    model._frozen = small
    parts = torch.cat([model.encode_image(part) for part in x.split(256)])
    assert seen == [256] + [128] * 5 and whole.shape == parts.shape
    with torch.inference_mode():
        alone = plain(model.inputs(x)).float()
    assert all(F.cosine_similarity(a, alone).min() > 0.9999 for a in (whole, parts))
