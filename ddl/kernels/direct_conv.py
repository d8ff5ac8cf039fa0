"""Direct convolution, without im2col, for small windows: gathering them would cost more than multiplying them.

Images are (batch, height, width, channels), weight (ky, kx, channels, units). nn/conv_algorithms.py chooses it."""

from __future__ import annotations

from ddl.arrays.namespace import Array
from ddl.kernels.backend import kernel
from ddl.kernels.im2col import Pair, offsets


@kernel
def convolve(x: Array, weight: Array, y: Array, stride: Pair, padding: Pair) -> None:
    """y (batch, rows, columns, units) = each window times the weight."""
    y[...] = 0
    for i, j, at, pixels in offsets(weight.shape[:2], stride, padding, x.shape[1:3], y.shape[1:3]):
        y[:, at[0], at[1]] += x[:, pixels[0], pixels[1]] @ weight[i, j]


@kernel
def convolve_backward(x: Array, dy: Array, dweight: Array, stride: Pair, padding: Pair) -> None:
    """dweight += the windows of x, each times its dy."""
    units = dy.shape[3]
    for i, j, at, pixels in offsets(dweight.shape[:2], stride, padding, x.shape[1:3], dy.shape[1:3]):
        seen = x[:, pixels[0], pixels[1]].reshape(-1, x.shape[3])
        dweight[i, j] += seen.T @ dy[:, at[0], at[1]].reshape(-1, units)
