"""Image encoders of timm, without a text side: --model timm:vit_small_patch14_dinov2.lvd142m (docs/encoders.md)."""

import difflib
import math
import sys
from contextlib import nullcontext

from common import Encoder, View, fail, hub_file, read_weights, without_draws

PACKAGES = "timm"


def load(name, weights):
    """The network `name` without its classifier: its published weights, safetensors where there are some, or those of a file."""
    import timm
    from timm.data import resolve_model_data_config

    arch, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{arch}.*")]
    if not timm.is_model(arch):
        near = difflib.get_close_matches(arch, timm.list_models(), 4, 0)
        fail(f"--model timm:{name}: no such model; nearest: {', '.join(near)}")
    if (tag and tag not in tags) or not (tags or weights):
        fail(f"--model timm:{name}: no such weights; there are: {', '.join(f'{arch}.{t}' for t in tags) or 'none but of --weights FILE'}")
    repo = timm.get_pretrained_cfg(name).hf_hub_id
    if repo and not weights:
        weights = hub_file(f"timm:{name}", repo, "model.safetensors", "pytorch_model.bin")
    try:
        with without_draws() if weights else nullcontext():
            net = timm.create_model(name, pretrained=not weights, num_classes=0)
    except Exception as error:
        fail(f"--model timm:{name}: cannot be had ({type(error).__name__}); fetch its weights elsewhere, pass them by --weights")
    if weights:
        fill(net, weights)

    # how timm itself evaluates: crop_pct is the share of the resized picture that is seen
    config = resolve_model_data_config(net)
    colours, height, width = config["input_size"]
    if colours != 3:
        fail(f"--model timm:{name}: takes pictures of {colours} channels, not of 3")
    fit = {"center": "crop"}.get(config["crop_mode"], config["crop_mode"])
    view = View((height, width), fit, config["interpolation"], math.floor(height / config["crop_pct"]))
    return Encoder(net, view, tuple(config["mean"]), tuple(config["std"]))


def fill(net, weights):
    """Load a file of timm, of finetune.py, or of the authors where timm can translate it; each tensor but a classifier's has its place."""
    state, mine = read_weights(weights)[1], net.state_dict()
    last = net.pretrained_cfg.get("classifier") or ()
    heads = ("head", *([last] if isinstance(last, str) else last))
    state = {key: t for key, t in state.items() if key in mine or key.rpartition(".")[0] not in heads}
    translate = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    net.load_state_dict(translate(state, net) if translate and state.keys() != mine.keys() else state)
