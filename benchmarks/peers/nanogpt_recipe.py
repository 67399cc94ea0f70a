"""nanoGPT's published CPU recipe for tiny Shakespeare, on transformers' GPT-2: trains, then prints the loss over the
whole validation part in nats per character. Run by tiny_shakespeare.py.

4 layers, 4 heads, width 128, context 64, batch 12, 2000 steps, AdamW (0.9, 0.99), weight decay 0.1 on matrices, 1e-3
after 100 steps of warm-up, cosine to 1e-4, clipping 1.0, no dropout; evaluated every 250 steps as the recipe does.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

CONTEXT, BATCH, STEPS, WARMUP, PEAK, LOW = 64, 12, 2000, 100, 1e-3, 1e-4


def rate(step: int) -> float:
    if step < WARMUP:
        return PEAK * (step + 1) / (WARMUP + 1)
    progress = (step - WARMUP) / (STEPS - WARMUP)
    return LOW + 0.5 * (1 + math.cos(math.pi * progress)) * (PEAK - LOW)


def draw(data: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    starts = torch.randint(len(data) - CONTEXT, (BATCH,), generator=generator)
    block = data[starts[:, None] + torch.arange(CONTEXT + 1)]  # (batch, context + 1)
    return block[:, :-1], block[:, 1:]


def loss_of(model: GPT2LMHeadModel, inputs: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
    logits = model(inputs).logits  # (batch, context, vocabulary)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


@torch.no_grad()
def whole_loss(model: GPT2LMHeadModel, data: torch.Tensor) -> float:
    """Mean over all of `data` but its first character, in windows of the context that do not overlap."""
    model.eval()
    count = (len(data) - 1) // CONTEXT
    inputs = data[: count * CONTEXT].view(count, CONTEXT)
    targets = data[1 : count * CONTEXT + 1].view(count, CONTEXT)
    total = sum(loss_of(model, i, t, "sum").item() for i, t in zip(inputs.split(256), targets.split(256), strict=True))
    if rest := len(data) - 1 - count * CONTEXT:
        total += loss_of(model, data[-1 - rest : -1][None], data[-rest:][None], "sum").item()
    model.train()
    return total / (len(data) - 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    torch.manual_seed(a.seed)
    text = a.text.read_text(encoding="utf-8")
    ids = {character: index for index, character in enumerate(sorted(set(text)))}
    data = torch.tensor([ids[character] for character in text])
    train, validation = data[: int(0.9 * len(data))], data[int(0.9 * len(data)) :]
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(ids),
            n_positions=CONTEXT,
            n_embd=128,
            n_layer=4,
            n_head=4,
            **none,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(a.seed)
    for step in range(STEPS):
        if step % 250 == 0:
            with torch.no_grad():
                for part in (train, validation):
                    for _ in range(20):
                        loss_of(model, *draw(part, generator), "mean").item()
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad()
        loss_of(model, *draw(train, generator), "mean").backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    print(f"whole validation loss {whole_loss(model, validation):.4f}")


if __name__ == "__main__":
    main()
