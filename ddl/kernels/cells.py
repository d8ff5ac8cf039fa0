"""One step in time of the gated recurrent cells, forward and backward.

Arrays are contiguous (rows, units) or (rows, gates * units). mask: (rows,) booleans, or (0,) for none; a row whose
mask is False keeps its state. The loop over time is in nn/recurrent.py."""

from __future__ import annotations

from ddl.arrays.namespace import Array, namespace_of
from ddl.kernels.backend import kernel


def _sigmoid(x: Array) -> None:
    """In place, by tanh, which cannot overflow."""
    x *= 0.5
    namespace_of(x).tanh(x, out=x)
    x *= 0.5
    x += 0.5


@kernel(writes="gates new tanh_c")
def lstm_cell(gates: Array, recurrent: Array, bias: Array, mask: Array, old: tuple, new: tuple, tanh_c: Array) -> None:
    """gates (in: the input's part) become input, forget, candidate, output gates of gates + recurrent + bias.

    old, new: (c, h), c = forget * old c + input * candidate, h = output * tanh(c)."""
    xp = namespace_of(gates)
    units = gates.shape[1] // 4
    (c_old, h_old), (c, h) = old, new
    gates += recurrent
    gates += bias
    _sigmoid(gates[:, : 2 * units])
    xp.tanh(gates[:, 2 * units : 3 * units], out=gates[:, 2 * units : 3 * units])
    _sigmoid(gates[:, 3 * units :])
    xp.multiply(gates[:, units : 2 * units], c_old, out=c)
    c += gates[:, :units] * gates[:, 2 * units : 3 * units]
    xp.tanh(c, out=tanh_c)
    xp.multiply(gates[:, 3 * units :], tanh_c, out=h)
    if len(mask):
        xp.copyto(c, c_old, where=~mask[:, None])
        xp.copyto(h, h_old, where=~mask[:, None])


@kernel(writes="gates dc")
def lstm_cell_backward(gates: Array, tanh_c: Array, c_old: Array, mask: Array, dh: Array, dc: Array) -> None:
    """gates become the gradient before the gates; dc that of the old c, in place. dh stays.

    Of a row that kept its state gates become 0 and dc stays."""
    xp = namespace_of(gates)
    units = gates.shape[1] // 4
    i, f, g, o = (gates[:, k * units : (k + 1) * units] for k in range(4))
    inner = dc + dh * o * (1 - tanh_c * tanh_c)
    di, df = inner * g * i * (1 - i), inner * c_old * f * (1 - f)
    dg, do = inner * i * (1 - g * g), dh * tanh_c * o * (1 - o)
    inner *= f
    if len(mask):
        xp.copyto(inner, dc, where=~mask[:, None])
    dc[...] = inner
    for gate, slope in ((i, di), (f, df), (g, dg), (o, do)):
        gate[...] = slope
    if len(mask):
        gates *= mask[:, None]


@kernel(writes="gates h")
def gru_cell(gates: Array, recurrent: Array, mask: Array, h_old: Array, h: Array) -> None:
    """gates (in: the input's part with bias) become reset, update gates and candidate.

    candidate = tanh(its gates + reset * its recurrent); h = (1 - update) * candidate + update * old h."""
    xp = namespace_of(gates)
    units = gates.shape[1] // 3
    gates[:, : 2 * units] += recurrent[:, : 2 * units]
    _sigmoid(gates[:, : 2 * units])
    r, z, n = (gates[:, k * units : (k + 1) * units] for k in range(3))
    n += r * recurrent[:, 2 * units :]
    xp.tanh(n, out=n)
    xp.subtract(h_old, n, out=h)
    h *= z
    h += n
    if len(mask):
        xp.copyto(h, h_old, where=~mask[:, None])


@kernel(writes="gates recurrent dh")
def gru_cell_backward(gates: Array, recurrent: Array, mask: Array, h_old: Array, dh: Array) -> None:
    """gates become the gradient of the input's part, recurrent that of the recurrent part.

    dh: in place the gradient of the old h, without what comes through ``recurrent``."""
    units = gates.shape[1] // 3
    r, z, n = (gates[:, k * units : (k + 1) * units] for k in range(3))
    dn = dh * (1 - z) * (1 - n * n)
    dz = dh * (h_old - n) * z * (1 - z)
    dr = dn * recurrent[:, 2 * units :] * r * (1 - r)
    through, back = dn * r, dh * z
    if len(mask):
        namespace_of(dh).copyto(back, dh, where=~mask[:, None])
    dh[...] = back
    for gate, slope in ((r, dr), (z, dz), (n, dn)):
        gate[...] = slope
    recurrent[:, : 2 * units] = gates[:, : 2 * units]
    recurrent[:, 2 * units :] = through
    if len(mask):
        gates *= mask[:, None]
        recurrent *= mask[:, None]
