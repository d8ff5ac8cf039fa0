"""A small GPT in PyTorch learns to write Python from the bytes of the standard library, and its ranks may die.

    pip install "ddl-mpi[torch]"
    python launch/examples/nanogpt.py
    mpirun --with-ft ulfm -n 2 python launch/examples/nanogpt.py --steps 2000

It prints the loss on files it has not seen, in bits per byte, beside the entropy of single bytes there (all that a
model without memory could reach), and then a text that the model writes. On 2 ranks the default of 400 steps took 84 s
of CPU time in all and reached 2.81 bits per byte, against an entropy of 4.51; the text is then still mostly spaces."""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ddl
import ddl.torch

WINDOW = 64


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        parts = self.attention(self.before_attention(x)).view(rows, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        rate = self.rate if self.training else 0.0
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=rate)
        x = x + self.dropout(self.projection(seen.transpose(1, 2).reshape(rows, length, width)))
        return x + self.dropout(self.mlp(self.before_mlp(x)))


class GPT(nn.Module):
    """Scores of the next byte at each place: (rows, length) -> (rows, length, 256)."""

    def __init__(self, layers: int = 3, width: int = 96, heads: int = 4, dropout: float = 0.05):
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, width), nn.Embedding(WINDOW, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        self.out.weight = self.bytes.weight
        for part in self.modules():
            if isinstance(part, (nn.Linear, nn.Embedding)):
                nn.init.normal_(part.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        return self.out(self.norm(self.blocks(self.bytes(x) + self.places(places))))


@torch.no_grad()
def written(net: GPT, start: str, length: int = 300, temperature: float = 0.7) -> str:
    """``start`` continued by ``length`` bytes drawn from the network."""
    random, text = torch.Generator().manual_seed(1), torch.tensor([list(start.encode())])
    for _ in range(length):
        shares = F.softmax(net(text[:, -WINDOW:])[:, -1] / temperature, dim=-1)
        text = torch.cat([text, torch.multinomial(shares, 1, generator=random)], dim=1)
    return bytes(text[0].tolist()).decode(errors="replace")


def entropy(source: ddl.data.Source) -> float:
    """Bits of a byte of this text, drawn by its frequency."""
    source.hold([range(len(source))])
    counts = np.bincount(source.gather(np.arange(len(source)))["y"].ravel())
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def main() -> None:
    words = argparse.ArgumentParser(description="Train a small GPT on the sources of the standard library.")
    words.add_argument("--steps", type=int, default=400)
    steps = words.parse_args().steps
    torch.manual_seed(0)
    net = GPT()
    text = ddl.data.open_dataset("stdlib_text", options={"window": WINDOW, "limit_mib": 2})
    decayed = [p for p in net.parameters() if p.dim() > 1]
    others = [p for p in net.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 4e-3, betas=(0.9, 0.99))
    run = ddl.Trainer(
        ddl.torch.Model(net, "cross_entropy"),
        data=text.train,
        validation=text.validation,
        global_batch=32,
        clip_norm=1.0,
        optimizer=optimizer,
        schedule=torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps + 1, cycle_momentum=False),
        settings={"run.name": "nanogpt", "train.evaluate_every": 0},
    )
    summary = run.fit(steps=steps)
    if run.group.is_leader:
        bits = summary["validation"]["loss"] / math.log(2)
        print(
            f"{run.group.size} of {summary['ranks_started']} ranks, {bits:.3f} bits per byte of unseen files, ", end=""
        )
        print(f"entropy of single bytes {entropy(text.validation):.3f}")
        print(written(net.eval(), "def main("))


if __name__ == "__main__":
    main()
