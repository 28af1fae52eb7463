"""Encoders from files: open_clip's and timm's against these packages' own pipelines, a user's own, and pictures that are not square."""

import copy
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import onnx
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from conftest import ROOT, refused
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

import common
import few_shot
import finetune
import linear_probe
import prompts
import upsample
import zero_shot
from common import View, load_data, load_model, model_name

WORDS = ["<pad>", "</s>", "<unk>", "a", "photo", "of", "red", "apple", "blue", "plum", "dont", "A", "Photo", ",", ".", "!", "'"]
SHAPES = {  # of networks small enough for a test, registered as open_clip's own
    "tiny-CLIP": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "tiny-RN": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "tiny-SigLIP": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {
            "context_length": 8, "vocab_size": len(WORDS), "hf_tokenizer_name": "tiny/siglip", "width": 32, "heads": 2, "layers": 1,
            "tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
        },
    },
}  # fmt: skip
TAGS = {
    "tiny-CLIP": {"openai": open_clip.pretrained._pcfg(hf_hub="tiny/clip/", quick_gelu=True)},
    "tiny-RN": {"plain": open_clip.pretrained._pcfg(hf_hub="tiny/rn/"), "other": open_clip.pretrained._mccfg(hf_hub="tiny/rn/")},
    "tiny-SigLIP": {"webli": open_clip.pretrained._slpcfg(hf_hub="tiny/siglip/")},
}


def put_into_hub(hub, repo):
    """The folder in a cache of the Hugging Face hub where the files of a repository lie."""
    place = hub / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs/main").write_text("0" * 40)
    (place / "snapshots" / ("0" * 40)).mkdir(parents=True, exist_ok=True)
    return place / "snapshots" / ("0" * 40)


def spread(net):
    """Biases that are not zero, and statistics of batch norm that are not 1, so that each tensor matters."""
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if name.endswith(("bias", "running_mean")) and tensor.ndim == 1:
            nn.init.normal_(tensor, std=0.1)
    return net.eval()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A cache of the hub, without network: open_clip's small networks with a tokenizer, and one of timm."""
    hub = tmp_path_factory.mktemp("hub")
    (hub / "shapes").mkdir()
    for arch, shape in SHAPES.items():
        (hub / "shapes" / f"{arch}.json").write_text(json.dumps(shape))
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
        open_clip.add_model_config(hub / "shapes")
        for arch, tags in TAGS.items():
            patch.setitem(open_clip.pretrained._PRETRAINED, arch, tags)
            torch.manual_seed(1)
            quick = any(tag.get("quick_gelu") for tag in tags.values())
            net = spread(open_clip.create_model(arch, force_quick_gelu=quick))
            folder = put_into_hub(hub, tags[next(iter(tags))]["hf_hub"].strip("/"))
            save_file(net.state_dict(), folder / "open_clip_model.safetensors")
            (folder / "open_clip_pytorch_model.bin").write_bytes(b"must not be opened")
        folder = put_into_hub(hub, "tiny/siglip")
        PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
        for absent in ("config.json", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja"):  # as the cache remembers it
            (folder.parent.parent / ".no_exist" / folder.name).mkdir(parents=True, exist_ok=True)
            (folder.parent.parent / ".no_exist" / folder.name / absent).touch()
        torch.manual_seed(1)
        state = spread(timm.create_model("test_vit", pretrained=False)).state_dict()
        save_file(state, put_into_hub(hub, "timm/test_vit.r160_in1k") / "model.safetensors")
        yield hub


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders of pictures, small squares and any shapes; real cartoons too where $REAL_DATA is set: {name: files}."""
    root, rng, found = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0), {}
    for name, sizes in (("small", [(40, 40)]), ("any", [(300, 200), (90, 260), (150, 150), (401, 333)])):
        for i in range(8):
            place = root / name / "test" / "ab"[i % 2] / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            blots = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8))
            blots.resize(sizes[i % len(sizes)], Image.Resampling.BICUBIC).save(place)
    if real := os.environ.get("REAL_DATA"):
        files = sorted((Path(real) / "simpsons/Test").rglob("*.*"))
        for i, file in enumerate(files[:: len(files) // 8][:8]):
            place = root / "real" / "test" / "ab"[i % 2] / f"{i}{file.suffix}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    for folder in root.iterdir():
        found[folder.name] = folder
    return found


def images_of(folder, view):
    return load_data(str(folder), type="").images(view, ["test"])["test"]


def agree(ours, theirs):
    """Features (N, D) are the same: also after the mean, which all share, is taken out."""
    cosine = F.cosine_similarity(ours - theirs.mean(0), theirs - theirs.mean(0))
    assert ours.shape == theirs.shape and cosine.min() >= 0.9999, cosine


def rgb(folder, path):
    return Image.open(folder / path).convert("RGB")


@pytest.mark.parametrize(
    "arch, tag, fit, interpolation", [("tiny-CLIP", "openai", "crop", "bicubic"), ("tiny-SigLIP", "webli", "squash", "bicubic")]
)
def test_open_clip_is_as_its_own_pipeline(arch, tag, fit, interpolation, hub, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = load_model(f"open_clip:{arch}/{tag}", "cpu", precision="float32")
    quick = bool(TAGS[arch][tag].get("quick_gelu"))
    file = str(put_into_hub(hub, TAGS[arch][tag]["hf_hub"].strip("/")) / "open_clip_model.safetensors")
    way = {f"image_{key}": TAGS[arch][tag][key] for key in ("mean", "std", "interpolation", "resize_mode")}
    net, _, preprocess = open_clip.create_model_and_transforms(arch, file, force_quick_gelu=quick, **way)
    tokenizer, captions = open_clip.get_tokenizer(arch), ["A Photo of a red_apple, don't!", "blue plum", "a"]
    assert (model.view.fit, model.view.interpolation) == (fit, interpolation)
    z = model.embed(captions)
    with torch.inference_mode():
        text = net.eval().encode_text(tokenizer(captions), normalize=True)
    assert torch.allclose(z, text, atol=1e-5)
    for folder in pictures.values():
        images = images_of(folder, model.view)
        x, _ = model.features(images)
        with torch.inference_mode():
            pixels = torch.stack([preprocess(rgb(folder, path)) for path in images.paths])
            theirs = net.encode_image(pixels)
            logits = net.get_logits(pixels, tokenizer(captions))[0]
        agree(x, theirs)
        small = 0.02 if images.pixels.shape[1] < model.size else 1e-3  # 8 bits of small ones are rounded by another kernel
        assert (zero_shot.zero_shot(x, z, model.logit_scale, model.logit_bias) - logits).abs().max() < small * model.logit_scale
    assert (model.logit_bias == -10) == (arch == "tiny-SigLIP")


@pytest.mark.parametrize("arch, places", [("tiny-CLIP/openai", [3, 5]), ("tiny-SigLIP/webli", [8])])
def test_captions_are_computed_to_their_end_where_attention_is_causal(arch, places, hub, tmp_path, monkeypatch):
    """tiny-CLIP has 16 places; each word here is a token, and so are start and end. Short captions go together."""
    monkeypatch.chdir(tmp_path)
    model, seen = load_model(f"open_clip:{arch}", "cpu", precision="float32"), []
    tower = model.net.transformer if model.causal else model.net.text.transformer
    tower.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    captions = ["a photo of"] * 40 + ["a"] * 64
    whole = model.net.encode_text(model.tokenizer(captions), normalize=True)
    full, seen[:] = seen[0], []
    assert torch.allclose(model.embed(captions), whole, atol=1e-6)
    assert sorted(set(seen)) == places and (max(places) < full) == model.causal


def test_siglip_reads_lower_case_without_punctuation(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = load_model("open_clip:tiny-SigLIP/webli", "cpu", precision="float32")
    a, b = model.embed(["A Photo of a red_apple, don't!", "a photo of a red apple dont"])
    assert torch.equal(a, b) and "note" not in capsys.readouterr().out
    assert model.tokenizer(["a photo"]).tolist() == [[3, 4, 1, 0, 0, 0, 0, 0]]
    model.embed(["plum", "a photo of a red apple of a blue plum"])
    assert "note: 1 of 2 captions cut to 8 tokens" in capsys.readouterr().out


def test_the_activation_is_that_of_the_tag_or_of_the_name(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = put_into_hub(hub, "tiny/clip") / "open_clip_model.safetensors"
    x = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    tagged, plain = (load_model(f"open_clip:{name}", "cpu", file).encode_image(x) for name in ("tiny-CLIP/openai", "tiny-CLIP"))
    assert (tagged - plain).abs().max() > 1e-3


@pytest.mark.parametrize(
    "arch, projection, width", [("tiny-CLIP", "proj", 64), ("tiny-RN", "attnpool.c_proj", 512), ("tiny-SigLIP", "", 64)]
)
def test_penultimate_features_are_those_before_the_projection(arch, projection, width, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"open_clip:{arch}/{next(iter(TAGS[arch]))}"
    whole, before = (load_model(name, "cpu", precision="float32", features=kind) for kind in ("projected", "penultimate"))
    x = torch.randint(0, 256, (3, 3, before.size, before.size), dtype=torch.uint8)
    f, z = before.encode_image(x), whole.encode_image(x)
    assert f.shape[1] == before.width == width
    if projection == "proj":
        f = f @ before.projection["proj"]
    elif projection:
        f = F.linear(f, before.projection[f"{projection}.weight"], before.projection[f"{projection}.bias"])
    assert torch.allclose(f, z, atol=1e-5) and not torch.equal(before.encode_image(x), z) * bool(projection)
    assert before.state_dict().keys() == whole.state_dict().keys()
    assert all(torch.equal(t, whole.state_dict()[key]) for key, t in before.state_dict().items())


TIMM = [("test_vit.r160_in1k", {}), ("test_vit.r160_in1k", {"crop_mode": "squash", "crop_pct": 0.8}), ("test_resnet.r160_in1k", {}),
        ("test_convnext.r160_in1k", {"crop_pct": 0.875}), ("mobilenetv3_small_050.lamb_in1k", {})]  # fmt: skip


@pytest.mark.parametrize("name, changed", TIMM)
def test_timm_is_as_its_own_pipeline(name, changed, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = timm.models._registry._model_pretrained_cfgs
    monkeypatch.setitem(known, name, replace(known[name], **changed))
    torch.manual_seed(0)
    whole = spread(timm.create_model(name, pretrained=False))
    torch.save(whole.state_dict(), tmp_path / "published.pt")  # with its classifier
    model = load_model(f"timm:{name}", "cpu", tmp_path / "published.pt", "float32")
    preprocess = timm.data.create_transform(**timm.data.resolve_model_data_config(whole))
    assert not model.has_text
    for folder in pictures.values():
        images = images_of(folder, model.view)
        x, _ = model.features(images)
        with torch.inference_mode():
            pixels = torch.stack([preprocess(rgb(folder, path)) for path in images.paths])
            agree(x, whole.forward_head(whole.forward_features(pixels), pre_logits=True))
            assert torch.allclose(whole.get_classifier()(x), whole(pixels), atol=0.02 if images.pixels.shape[1] < model.size else 1e-4)


def test_dinov2_takes_its_own_size_and_gives_its_class_token(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "vit_small_patch14_dinov2.lvd142m"
    torch.manual_seed(0)
    net = timm.create_model(name, pretrained=False).eval()
    torch.save(net.state_dict(), tmp_path / "dino.pt")
    model = load_model(f"timm:{name}", "cpu", tmp_path / "dino.pt", "float32")
    assert (model.view, model.width) == (View(518), 384)
    x = torch.randint(0, 256, (1, 3, 518, 518), dtype=torch.uint8)
    with torch.inference_mode():
        token = net.forward_features(model.inputs(x))[:, 0]
    assert torch.allclose(model.encode_image(x), token, atol=1e-5)


def test_timm_of_the_cache_is_its_published_file(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = put_into_hub(hub, "timm/test_vit.r160_in1k") / "model.safetensors"
    x = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    a, b = (load_model("timm:test_vit.r160_in1k", "cpu", weights, "float32") for weights in (None, file))
    assert a.sha256 == b.sha256 and torch.equal(a.encode_image(x), b.encode_image(x))


# ---- names, and what must not pass ---------------------------------------------------------------------------------------


def test_wrong_names_end_in_one_line_with_the_nearest(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").touch()
    (tmp_path / "w.pt").touch()
    assert "nearest: mine.py" in refused(capsys, "mime.py:x", "cpu")
    assert "nearest: timm.py" in refused(capsys, "hub:ViT", "cpu")
    assert "tiny-CLIP" in refused(capsys, "open_clip:tinyCLIP", "cpu")
    for name in ("open_clip:tiny-CLIP", "open_clip:tiny-CLIP/opnai"):
        assert "name its weights: tiny-CLIP/openai" in refused(capsys, name, "cpu")
    assert "depend on the weights" in refused(capsys, "open_clip:tiny-RN", "cpu", "w.pt")
    assert "vit_tiny" in refused(capsys, "timm:vit_tinny_patch16_224", "cpu")
    assert "test_vit.r160_in1k" in refused(capsys, "timm:test_vit.in1k", "cpu")
    assert "cannot be downloaded" in refused(capsys, "timm:test_vit2.r160_in1k", "cpu")  # no network, and not in the cache
    assert "model.safetensors of huggingface.co/timm/test_vit2" in refused(capsys, "timm:test_vit2.r160_in1k", "cpu")
    error = refused(capsys, "open_clip:ViT-B-16-SigLIP2/webli", "cpu")
    assert "fetch open_clip_model.safetensors of huggingface.co/timm/ViT-B-16-SigLIP2" in error
    assert model_name("timm:a/b") == "timm:a/b" and common.spelled("my/e.py:a@b") == "my-e.py-a-b"


class Bomb:
    def __reduce__(self):
        return exec, ("open('exploded', 'w')",)


def test_weights_that_do_not_fit_are_refused(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state = timm.create_model("test_vit", pretrained=False).state_dict()
    state.pop("norm.weight")
    torch.save(state, "cut.pt")
    torch.save(timm.create_model("test_vit2", pretrained=False).state_dict(), "deeper.pt")
    for file in ("cut.pt", "deeper.pt"):
        assert "RuntimeError" in refused(capsys, "timm:test_vit", "cpu", file)
        assert "open_clip.py" in refused(capsys, "open_clip:tiny-CLIP", "cpu", file)
    assert "no such file" in refused(capsys, "timm:test_vit", "cpu", "none.pt")
    torch.save({"a": Bomb()}, "bomb.pt")
    for name in ("timm:test_vit", "open_clip:tiny-CLIP"):
        assert "not a readable file of tensors" in refused(capsys, name, "cpu", "bomb.pt")
    assert not Path("exploded").exists()


def test_shapes_that_are_not_supported_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    known = timm.models._registry._model_pretrained_cfgs
    name, plain = "test_resnet.r160_in1k", known["test_resnet.r160_in1k"]
    torch.save(timm.create_model(name, pretrained=False).state_dict(), "w.pt")
    for changed in ({"input_size": (3, 160, 128)}, {"crop_mode": "border"}, {"interpolation": "nearest"}):
        monkeypatch.setitem(known, name, replace(plain, **changed))
        assert "not supported" in refused(capsys, f"timm:{name}", "cpu", "w.pt")
    monkeypatch.setitem(known, name, replace(plain, input_size=(4, 160, 160)))
    torch.save(timm.create_model(name, pretrained=False).state_dict(), "w.pt")
    assert "channels" in refused(capsys, f"timm:{name}", "cpu", "w.pt")


@pytest.mark.parametrize("package, name", [("open_clip_torch", "open_clip:ViT-B-32/openai"), ("timm", "timm:test_vit.r160_in1k")])
def test_a_package_that_is_absent_is_named(package, name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name.partition(":")[0], None)
    assert f"pip install {package}" in refused(capsys, name, "cpu")


BROKEN = {
    "x = 1": "no function load",
    "def load(name, weights):\n    return 1 / 0": "line 2: ZeroDivisionError",
    "def load(name, weights): return 5": "gives int, not an Encoder",
    "import nothing_like_it": "pip install nothing_like_it",
    "def load(:": "SyntaxError",
    "@Conv2d(3, 4, 8)": "not (1, width)",
    "@Sequential(nn.Flatten(), nn.Linear(5, 5))": "does not take pictures (1, 3, 16, 16)",
    "@Sequential(nn.AvgPool2d(16), nn.Flatten()); e.width = 9": "gives features 3 wide, but says width 9",
}


@pytest.mark.parametrize("text, said", BROKEN.items())
def test_a_broken_file_ends_in_one_line(text, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if text.startswith("@"):
        net, _, more = text[1:].partition("; ")
        start = "from torch import nn\nfrom common import Encoder\ndef load(name, weights):\n"
        text = f"{start}    e = Encoder(nn.{net}, 16, (0,) * 3, (1,) * 3)\n    {more or 'pass'}\n    return e"
    Path("broken.py").write_text(text)
    assert said in refused(capsys, "broken.py:x", "cpu")


# ---- every script, with an encoder of one's own ------------------------------------------------------------------------------

BOTH = """
import torch
from torch import nn
from common import Encoder, View, read_weights

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.eye = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 8))
        self.words = nn.EmbeddingBag(256, 8)

def load(name, weights):
    torch.manual_seed(0)
    net = Net()
    scale = NUMBER
    if weights:
        net.load_state_dict({key: t for key, t in read_weights(weights)[1].items() if not key.startswith("head.")})
    def tokens(captions):
        return torch.tensor([[*c.lower().encode()[:20].ljust(20)] for c in captions])
    return Encoder(net.eye, View(32, "squash", short=40), (0.5,) * 3, (0.2,) * 3, 8, net.words, tokens, scale, -3.0, net, "4")
"""


def test_the_example_of_the_page_runs(world, call):
    (example,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/encoders.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(example.splitlines()) <= 26
    Path("own.py").write_text(example)
    common_flags = ["--data", "tiny", "--model", "own.py:24", "--out", "r.json"]
    for main, more in ((linear_probe.main, ["--save", "head.safetensors"]), (few_shot.main, ["--shots", 1, "--seeds", 2])):
        code, _, err = call(main, *common_flags, *more)
        assert code == 0, err
    record = json.loads(Path("r.json").read_text())["model"]
    assert record["name"] == "own.py:24" and record["width"] == 24
    assert record["view"] == {"size": 64, "fit": "squash", "interpolation": "bilinear", "short": 64}
    assert [p.name.startswith("tiny-test-own.py-24-") for p in Path("cache/features").glob("tiny-test*")] == [True]
    code, out, err = call(linear_probe.main, "--load", "head.safetensors", "--predict", "data/tiny", "--csv", "named.csv")
    assert code == 0, err
    for main in (zero_shot.main, prompts.main):
        code, _, err = call(main, "--data", "tiny", "--model", "own.py")
        assert code == 2 and "no text side" in err and err.count("\n") == 1
    code, _, err = call(few_shot.main, "--data", "tiny", "--model", "own.py", "--prompts", "a {}")
    assert code == 2 and "--prompts: own.py has no text side" in err
    code, out, err = call(upsample.main, "apply", "--data", "tiny", "--model", "own.py", "--weights", "none.safetensors")
    assert code == 2 and "none.safetensors" in err
    assert common.input_size("own.py") == 64


@pytest.mark.parametrize(
    "number", ["2.0", "nn.Parameter(torch.tensor(2.0))", "net.register_parameter('t', nn.Parameter(torch.tensor(2.0))) or net.t"]
)
def test_every_script_takes_an_encoder_with_a_text_side(number, world, call):
    Path("both.py").write_text(BOTH.replace("NUMBER", number))
    flags = ["--data", "tiny", "--model", "both.py", "--out", "r.json"]
    runs = [
        (finetune.main, ["--method", "cs", "--epochs", 1, "--batch", 8, "--lr", "1e-2", "--head-lr", "0.1", "--save", "cs.safetensors"])
    ]
    if number == "2.0":
        runs += [(zero_shot.main, []), (prompts.main, []), (few_shot.main, ["--shots", 1]), (linear_probe.main, [])]
        runs += [(finetune.main, ["--head", "text", "--epochs", 1, "--batch", 8, "--save", "ml.safetensors"])]
    for main, more in runs:
        code, _, err = call(main, *flags, *more)
        assert code == 0, err
    told, tensors = common.read_weights("cs.safetensors")
    assert told["labels_used"] == 32
    assert ("head.logit_scale" in tensors) != ("t" in tensors)  # of the head where the network has none of its own
    scale = tensors["head.logit_scale" if "head.logit_scale" in tensors else "t"].fill_(3)  # as if trained
    common.save_weights("cs.safetensors", tensors, told)
    model = load_model("both.py", "cpu", "cs.safetensors", "float32")
    assert model.labels_used == 32 and all(torch.equal(t.cpu(), tensors[key]) for key, t in model.state_dict().items())

    # what --predict says is what this network and these captions give
    files = [str(p) for p in sorted(Path("data/tiny").resolve().rglob("*.jpg"))[:3]]
    code, _, err = call(finetune.main, "--load", "cs.safetensors", "--predict", *files, "--csv", "named.csv", "--precision", "float32")
    assert code == 0, err
    x = torch.from_numpy(np.stack([common._read_image(f, model.view)[0] for f in files])).permute(0, 3, 1, 2)
    z = model.classifier(told["words"], told["prompts"], told["type"])
    p = zero_shot.zero_shot(model.encode_image(x), z, scale.exp()).div(told["calibration"]["temperature"]).softmax(1).amax(1)
    named = [float(line.split(",")[2]) for line in Path("named.csv").read_text().splitlines()[1:]]
    assert np.allclose(named, p, atol=1e-4)


@pytest.mark.parametrize(
    "name, method", [("timm:test_vit.r160_in1k", "ml"), ("open_clip:tiny-CLIP/openai", "cs"), ("open_clip:tiny-SigLIP/webli", "ml")]
)
def test_what_finetune_saves_of_a_package_is_taken_again(name, method, hub, world, call):
    code, _, err = call(
        finetune.main, "--data", "tiny", "--model", name, "--method", method, "--epochs", 1, "--batch", 8, "--save", "net.safetensors"
    )
    assert code == 0, err
    model = load_model(name, "cpu", "net.safetensors", "float32")
    _, tensors = common.read_weights("net.safetensors")
    assert all(torch.equal(t, tensors[key]) for key, t in model.state_dict().items())
    code, out, err = call(finetune.main, "--load", "net.safetensors", "--predict", next(Path("data/tiny").resolve().rglob("*.jpg")))
    assert code == 0 and out, err


def test_a_head_of_its_own_is_not_overwritten(world, call):
    text = (
        "from torch import nn\nfrom common import Encoder\nclass Net(nn.Sequential):\n    pass\ndef load(name, weights):\n    net = Net()\n"
    )
    text += "    net.add_module('body', nn.Flatten())\n    net.add_module('head', nn.Linear(768, 4))\n"
    Path("own.py").write_text(text + "    return Encoder(net, 16, (0,) * 3, (1,) * 3)\n")
    code, _, err = call(finetune.main, "--data", "tiny", "--model", "own.py", "--save", "net.safetensors", "--epochs", 1)
    assert code == 2 and "of its own" in err and err.count("\n") == 1


def test_features_follow_the_file(world):
    Path("both.py").write_text(BOTH.replace("NUMBER", "2.0"))
    images = load_data("tiny").images(32, ["test"])["test"]
    load_model("both.py", "cpu").features(images)
    Path("both.py").write_text(BOTH.replace("NUMBER", "2.0").replace("nn.GELU()", "nn.ReLU()"))  # the same tensors
    load_model("both.py", "cpu").features(images)
    load_model("both.py", "cpu", fit="pad").features(images)
    load_model("both.py", "cpu", fit="pad").features(images)
    assert len([*Path("cache/features").iterdir()]) == 3


# ---- pictures that are not square ----------------------------------------------------------------------------------------


def test_pad_takes_the_median_of_the_border_and_squash_all_of_the_picture(tmp_path):
    x = np.full((20, 40, 3), (10, 200, 90), np.uint8)
    x[5:15, 10:30] = 255
    x[0, :30] = 0  # less than half of the border
    Image.fromarray(x).save(tmp_path / "wide.png")
    padded = common._read_image(tmp_path / "wide.png", View(40, "pad"))[0].astype(int)
    assert np.abs(padded[:8] - (10, 200, 90)).max() <= 2 and np.abs(padded[32:] - (10, 200, 90)).max() <= 2
    assert np.array_equal(padded[10:30], x)  # at its own size not a pixel changes
    squashed = common._read_image(tmp_path / "wide.png", View(20, "squash", "bilinear"))[0]
    assert np.array_equal(squashed, np.asarray(Image.fromarray(x).resize((20, 20), Image.Resampling.BILINEAR)))
    cropped = common._read_image(tmp_path / "wide.png", 20)[0]
    assert np.array_equal(cropped, x[:, 10:30])


@pytest.mark.parametrize("fit", ["crop", *(pytest.param(fit, marks=pytest.mark.slow) for fit in ("pad", "squash"))])
def test_fit_is_in_the_record_the_caches_and_what_is_saved(fit, pictures, world, call, capsys):
    for split in ("train", "test"):
        (world / "own" / split).parent.mkdir(exist_ok=True)
        (world / "own" / split).symlink_to(pictures["any"] / "test")
    told = []
    for more in ([], ["--fit", fit]):
        code, _, err = call(linear_probe.main, "--data", "own", "--model", "toy-RN", "--out", "r.json", "--save", "h.safetensors", *more)
        assert code == 0, err
        record = json.loads(Path("r.json").read_text())
        told.append((record["args"]["fit"], record["model"]["view"]["fit"], len([*Path("cache/features").glob("own-test*")])))
    assert told == [(None, "crop", 1), (fit, fit, 1 if fit == "crop" else 2)]
    assert common.read_weights("h.safetensors")[0]["view"]["fit"] == fit

    # --predict sees what the head has learnt from
    file = str(pictures["any"] / "test/a/0.png")
    seen = []
    read = common._read_image
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "_read_image", lambda path, view: seen.append(view) or read(path, view))
        code, _, err = call(linear_probe.main, "--load", "h.safetensors", "--predict", file)
    assert code == 0 and seen == [View(64, fit)], err
    code, _, err = call(linear_probe.main, "--load", "h.safetensors", "--predict", file, "--fit", fit)
    assert code == 2 and "--fit" in err
    if fit == "pad":
        code, _, err = call(linear_probe.main, "--load", "h.safetensors", "--export", "m.onnx")
        assert code == 0, err
        said = {m.key: json.loads(m.value) for m in onnx.load("m.onnx").metadata_props}["resize"]
        assert "median colour" in said and "bicubic" in said


def test_a_head_of_another_fit_is_not_a_start(pictures, world, call):
    for split in ("train", "test"):
        (world / "own").mkdir(exist_ok=True)
        (world / "own" / split).symlink_to(pictures["any"] / "test")
    flags = ["--data", "own", "--model", "toy-RN"]
    assert call(linear_probe.main, *flags, "--fit", "pad", "--save", "h.safetensors")[0] == 0
    code, _, err = call(finetune.main, *flags, "--head", "h.safetensors", "--epochs", 1)
    assert code == 2 and "--fit" in err


def test_augmentation_sees_the_same_centre(world):
    """Small pictures that the model sees the centre of, warped by nothing, are what it sees without augmentation."""
    Path("both.py").write_text(BOTH.replace("NUMBER", "2.0"))
    model = load_model("both.py", "cpu", precision="float32")
    assert (model.size, model.view.short) == (32, 40)
    line = torch.linspace(0, 255, 20).round().to(torch.uint8)
    x = line.expand(2, 3, 20, 20).contiguous()
    none = torch.eye(3).expand(2, 3, 3), torch.zeros(0, dtype=torch.long), torch.zeros(0)
    seen, _ = finetune.preparation(model)((x, torch.zeros(2, dtype=torch.long), *none))
    assert (seen - model.inputs(x)).abs().max() * 0.2 * 255 < 6


def test_views_compare_and_refuse():
    assert View(64) == View((64, 64), "crop", "bicubic", 64) and copy.deepcopy(View(64)) == View(64)
    for wrong in ({"size": (64, 32)}, {"size": 64, "fit": "stretch"}, {"size": 64, "interpolation": "nearest"}):
        with pytest.raises(ValueError, match="not supported"):
            View(**wrong)


FAULTS = {  # what a file says wrong, and a word of the line that says so
    "return Encoder(net, View(32), 0.5, 0.5)": "three colours",
    "return Encoder(net, View(32), (127,) * 3, (64,) * 3)": "three colours",
    "return Encoder(net, View(32), (0.5,) * 3, (0.5,) * 3, text=net)": "tokenizer",
    "return net": "not an Encoder",
}


@pytest.mark.parametrize("line", FAULTS)
def test_what_a_file_says_wrong_is_a_line(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net = "nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))"
    head = "from torch import nn\nfrom common import Encoder, View\n\ndef load(name, weights):\n    net = "
    (tmp_path / "e.py").write_text(f"{head}{net}\n    {line}\n")
    assert FAULTS[line] in refused(capsys, "e.py", "cpu")
    (tmp_path / "e.py").write_text("x = 1\n")
    assert "no function load" in refused(capsys, "e.py", "cpu")


def test_a_file_that_ignores_weights_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    head = "from torch import nn\nfrom common import Encoder, View\n\ndef load(name, weights):\n    "
    (tmp_path / "e.py").write_text(
        f"{head}return Encoder(nn.Sequential(nn.Flatten(), nn.Linear(3072, 5)), View(32), (0.5,) * 3, (0.5,) * 3)\n"
    )
    model = load_model("e.py", "cpu", precision="float32")
    common.save_weights("w.safetensors", model.state_dict(), {"model": "e.py"})
    assert "does not take the weights of w.safetensors" in refused(capsys, "e.py", "cpu", "w.safetensors")


@pytest.mark.parametrize("change", ["lacks", "has more", "another shape"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_file_of_another_network_is_refused_by_name_and_a_loose_load_is_seen(strict, change, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("e.py").write_text(
        "from torch import nn\nfrom common import Encoder, read_weights\n\ndef load(name, weights):\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))\n"
        f"    weights and net.load_state_dict(read_weights(weights)[1], strict={strict})\n"
        "    return Encoder(net, 32, (0.5,) * 3, (0.5,) * 3)\n"
    )
    state = load_model("e.py", "cpu", precision="float32").state_dict()
    common.save_weights("w.safetensors", state, {"model": "e.py"})
    assert load_model("e.py", "cpu", "w.safetensors", "float32").sha256
    state |= {"has more": {"x": torch.zeros(1)}, "another shape": {"1.bias": torch.zeros(4)}}.get(change, {})
    if change == "lacks":
        del state["1.bias"]
    common.save_weights("w.safetensors", state, {"model": "e.py"})
    assert "w.safetensors" in refused(capsys, "e.py", "cpu", "w.safetensors")


def test_attention_of_torchvision_computes_in_16_bits_on_a_cpu_too(monkeypatch):
    torch.manual_seed(0)
    net, x = torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 64).eval().requires_grad_(False), torch.randn(4, 3, 32, 32)
    net.heads, calls, short_cut = nn.Identity(), [], torch._native_multi_head_attention
    monkeypatch.setattr(torch, "_native_multi_head_attention", lambda *args: calls.append(1) or short_cut(*args))
    with torch.inference_mode():
        exact = net(x)
        with torch.autocast("cpu", torch.bfloat16):
            net(x)
            plain = len(calls)  # in float32 each time
            rounded = common._quick(net, torch.bfloat16)(x)
    assert len(calls) == plain and 0.999 < F.cosine_similarity(rounded.float(), exact).min() < 1 - 1e-7


@pytest.mark.parametrize("name, folds", [("mobilenet_v2", True), ("resnet18", True), ("densenet121", False)])
def test_batch_norms_are_folded_away_where_all_can_be_and_features_stay(name, folds, tmp_path):
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 2), module.weight.data.uniform_(0.5, 2)
    torch.save(net.state_dict(), tmp_path / "random.pt")
    model, x = load_model(name, "cpu", tmp_path / "random.pt", "float32"), torch.randint(256, (1, 3, 224, 224), dtype=torch.uint8)
    assert (model.frozen is not model.visual) == folds
    seen = []
    for _ in range(2):
        with torch.no_grad():
            seen.append(model.visual(model.inputs(x)))
        assert torch.allclose(model.encode_image(x), seen[-1], atol=1e-4 * seen[-1].abs().max().item())
        # what is trained is no copy, and what it has become is seen
        model.visual.requires_grad_(True)
        assert model.frozen is model.visual
        with torch.no_grad():
            [p.mul_(1.1) for p in model.visual.parameters()]
        model.visual.requires_grad_(False)
    assert not torch.allclose(*seen, atol=1e-2 * seen[0].abs().max().item())
