"""CLIP, SigLIP and their kin of open_clip: --model open_clip:ViT-B-16-SigLIP2/webli (docs/encoders.md)."""

import difflib
import logging
from functools import cache, reduce
from pathlib import Path
from types import MethodType

import torch

from common import Encoder, View, fail, hub_file, note_cut, read_weights, without_draws

PACKAGES = "open_clip_torch transformers"


def load(name, weights):
    """The network ARCH/TAG, or ARCH with a file of weights. The tag says how its pictures are made and which activation it is, too."""
    import open_clip

    arch, _, tag = name.partition("/")
    models, tags = open_clip.list_models(), open_clip.list_pretrained_tags_by_model(arch)
    if arch not in models:
        fail(f"--model open_clip:{name}: no such model; nearest: {', '.join(difflib.get_close_matches(arch, models, 4, 0) or models[:4])}")
    if tag not in tags and (tag or not weights):
        fail(f"--model open_clip:{name}: name its weights: {', '.join(f'{arch}/{t}' for t in tags) or 'only --weights FILE has some'}")
    known = [open_clip.get_pretrained_cfg(arch, t) for t in ([tag] if tag else tags)]
    ways = [{key: cfg[key] for key in ("mean", "std", "interpolation", "resize_mode")} for cfg in known] or [{}]
    if any(way != ways[0] for way in ways):
        fail(f"--model open_clip:{name}: mean and resizing depend on the weights, name these too: {', '.join(f'{arch}/{t}' for t in tags)}")
    if not weights:  # safetensors before anything else
        repo, file = known[0]["hf_hub"].rsplit("/", 1)
        files = (
            (Path(file).with_suffix(".safetensors").name, file) if file else ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
        )
        weights = hub_file(f"open_clip:{name}", repo, *files)

    # the activation of the tag, which open_clip only warns of; and no weights but these
    about, state = read_weights(weights)
    quick = bool(tag and known[0].get("quick_gelu"))
    logging.disable(logging.WARNING)  # "initialized randomly"
    with without_draws():
        net = open_clip.create_model(arch, force_quick_gelu=quick, force_preprocess_cfg=ways[0], pretrained_text=False)
    logging.disable(logging.NOTSET)
    if about:  # of finetune.py
        net.load_state_dict({key: t for key, t in state.items() if not key.startswith("head.")})
    else:
        open_clip.load_checkpoint(net, str(weights))

    tokenizer = cache(lambda: open_clip.get_tokenizer(arch))  # on first use, because it may have to be downloaded

    def tokens(captions):
        t = tokenizer()
        encode = t.encode if hasattr(t, "encode") else lambda caption: t.tokenizer(t.clean_fn(caption)).input_ids
        note_cut(captions, [len(encode(caption)) + 2 * hasattr(t, "encode") for caption in captions], t.context_length)
        return t(captions)

    made, places = net.visual.preprocess_cfg, ("proj", "attnpool.c_proj", "head.proj", "head.mlp")
    fit = {"shortest": "crop"}.get(made["resize_mode"], made["resize_mode"])
    last = next((p for p in places if reduce(lambda m, part: getattr(m, part, None), p.split("."), net.visual) is not None), "")
    seen = net.visual, View(made["size"], fit, made["interpolation"]), tuple(made["mean"]), tuple(made["std"])
    causal = type(net) is open_clip.CLIP and net.attn_mask is not None and net.text_pool_type == "argmax"
    text = MethodType(_text, net) if causal else net.encode_text
    return Encoder(*seen, 0, text, tokens, net.logit_scale, net.logit_bias, net, last, causal=causal)


def _text(net, tokens):
    """net.encode_text, of unit length, for tokens (B, T) of fewer places than the network has: what lies behind a caption's end counts
    for nothing, and most captions end at the tenth of 77."""
    there = tokens.shape[1]
    parts = {"positional_embedding": net.positional_embedding[:there], "attn_mask": net.attn_mask[:there, :there]}
    found = torch.func.functional_call(net, parts, (None, tokens))
    return found["text_features"] if isinstance(found, dict) else found[1]
