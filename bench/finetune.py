"""What a step of finetune.py costs beside a bare forward, backward and optimizer step on one resident batch.

    python bench/finetune.py --model toy-RN --method cs        # the flags of finetune.py

Measured in turns, and the fastest of each, because no machine is quiet.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import finetune
from common import fit, half_epochs, hold_out, load

ROUNDS, STEPS = 5, 8


def train_bare(net, optimizer, x, y, steps, autocast):
    """Steps on one batch, and nothing else: what no training loop can be faster than."""
    for _ in range(steps):
        with autocast():
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()  # waits for the device


def main():
    args = finetune.arguments()
    batch, args.batch = args.batch, None
    data, model = load(args)
    args.head = args.head or ("text" if model.has_text else "random")
    images = hold_out(data.images(model.view), args.seed)
    train, classes = images["train"], len(data.classes)
    head = finetune.first_head(args, data, model, images, {}, {})(args.seed).to(model.device)
    net = finetune.Classifier(model.visual, head, args.freeze, args.train_bn)
    x = torch.randn(batch, 3, model.size, model.size, device=model.device).contiguous(memory_format=torch.channels_last)
    y = torch.arange(batch, device=model.device) % classes
    read = finetune.loader(train, args.seed)

    def again(rows, epoch):
        return read(rows % len(train), epoch)

    def optimizer():
        return torch.optim.AdamW(finetune.parameter_groups(net, args.lr, args.head_lr, args.decay), fused=True)

    times = []
    for _ in range(ROUNDS):
        began = time.time()
        train_bare(net, optimizer(), x, y, STEPS, model.autocast)
        bare = (time.time() - began) / STEPS
        legs = half_epochs(again, STEPS * batch, batch, 1, args.seed)
        history, _ = fit(net, optimizer(), legs, finetune.train_step(net, model, not args.no_augment), lambda: 0.0, model)
        times.append((history[-1]["busy"] / STEPS, bare))
    ours, bare = np.min(times, 0)
    print(f"{ours:.4f} s a step of {batch} images, {bare:.4f} s bare, ratio {ours / bare:.2f}", end=" ")
    print(f"(each the fastest of {ROUNDS} times {STEPS} steps)")


if __name__ == "__main__":
    main()
