"""A module of PyTorch for the random trials of tests/fault/trials.py."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Network(nn.Module):
    """For the digits, with what depends on shards: statistics of a batch and random draws."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.dropout, self.out = nn.Dropout(0.2), nn.Linear(54, 10)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x.reshape(len(x), 1, 8, 8)))), 2)
        return self.out(self.dropout(x.flatten(1)))
