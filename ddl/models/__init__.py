"""Models: the protocol the trainer knows, a zoo of textbook networks, and ``build``, which finds or makes one.

A model holds no numbers: parameters come in as named views."""

from ddl.models.adversarial import GAN
from ddl.models.blueprint import Blueprint, Problem
from ddl.models.build import MODELS, build
from ddl.models.generate import Numbers, generate, next_tokens
from ddl.models.model import Loss, Model, Supervised, gradient_layout, initial_values
from ddl.models.zoo import MLP

__all__ = [
    "GAN",
    "MLP",
    "MODELS",
    "Blueprint",
    "Loss",
    "Model",
    "Numbers",
    "Problem",
    "Supervised",
    "build",
    "generate",
    "gradient_layout",
    "initial_values",
    "next_tokens",
]
