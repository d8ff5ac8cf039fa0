"""Layers (forward beside backward), losses, metrics and initial values.

Ready-made networks are models' business."""

from ddl.nn.activation import GELU, LeakyReLU, ReLU, Scale, Sigmoid, Softmax, Tanh
from ddl.nn.attention import MultiHeadAttention
from ddl.nn.context import Context
from ddl.nn.conv import Conv2D, ConvTranspose2D
from ddl.nn.dense import Dense
from ddl.nn.dropout import Dropout
from ddl.nn.embedding import Embedding, PositionalEmbedding, WithCategories
from ddl.nn.initial import INITIALISERS, initialiser
from ddl.nn.layer import Average, Backward, Initialiser, Layer, Sequential, Shape, Spec
from ddl.nn.losses import LOSSES, MAE, MSE, BinaryCrossEntropy, CrossEntropy, Distillation, Huber
from ddl.nn.norm import BatchNorm, LayerNorm
from ddl.nn.pool import AvgPool2D, GlobalAvgPool, MaxPool2D, TokenMean
from ddl.nn.recurrent import GRU, LSTM, RNN
from ddl.nn.shape import Flatten, Reshape, Residual

__all__ = [
    "GELU",
    "GRU",
    "INITIALISERS",
    "LOSSES",
    "LSTM",
    "MAE",
    "MSE",
    "RNN",
    "Average",
    "AvgPool2D",
    "Backward",
    "BatchNorm",
    "BinaryCrossEntropy",
    "Context",
    "Conv2D",
    "ConvTranspose2D",
    "CrossEntropy",
    "Dense",
    "Distillation",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAvgPool",
    "Huber",
    "Initialiser",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "MaxPool2D",
    "MultiHeadAttention",
    "PositionalEmbedding",
    "ReLU",
    "Reshape",
    "Residual",
    "Scale",
    "Sequential",
    "Shape",
    "Sigmoid",
    "Softmax",
    "Spec",
    "Tanh",
    "TokenMean",
    "WithCategories",
    "initialiser",
]
