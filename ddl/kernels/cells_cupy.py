"""CuPy kernels of cells.py: one launch per time step."""

from __future__ import annotations

from ddl.arrays.namespace import Array
from ddl.kernels.cupy_kernels import Fused

_SIGMOID = "T(0.5) + T(0.5) * tanh(T(0.5) * ({}))"

_lstm = Fused(
    "lstm_cell",
    "T ri, T rf, T rg, T ro, T bi, T bf, T bg, T bo, T c_old, T h_old, bool on",
    "T ig, T fg, T cg, T og, T c, T h, T t",
    f"""ig = {_SIGMOID.format("ig + ri + bi")};
        fg = {_SIGMOID.format("fg + rf + bf")};
        cg = tanh(cg + rg + bg);
        og = {_SIGMOID.format("og + ro + bo")};
        c = fg * c_old + ig * cg;
        t = tanh(c);
        h = og * t;
        c = on ? c : c_old;
        h = on ? h : h_old""",
)

_lstm_backward = Fused(
    "lstm_cell_backward",
    "T t, T c_old, T dh, bool on",
    "T ig, T fg, T cg, T og, T dc",
    """T inner = dc + dh * og * (1 - t * t);
       T di = inner * cg * ig * (1 - ig);
       T df = inner * c_old * fg * (1 - fg);
       T dg = inner * ig * (1 - cg * cg);
       T through = dh * t * og * (1 - og);
       T kept = inner * fg;
       dc = on ? kept : dc;
       ig = on ? di : T(0);
       fg = on ? df : T(0);
       cg = on ? dg : T(0);
       og = on ? through : T(0)""",
)

_gru = Fused(
    "gru_cell",
    "T rr, T rz, T rn, T h_old, bool on",
    "T reset, T update, T candidate, T h",
    f"""reset = {_SIGMOID.format("reset + rr")};
        update = {_SIGMOID.format("update + rz")};
        candidate = tanh(candidate + reset * rn);
        h = (h_old - candidate) * update + candidate;
        h = on ? h : h_old""",
)

_gru_backward = Fused(
    "gru_cell_backward",
    "T h_old, bool on",
    "T reset, T update, T candidate, T rr, T rz, T rn, T dh",
    """T dn = dh * (1 - update) * (1 - candidate * candidate);
       T dz = dh * (h_old - candidate) * update * (1 - update);
       T dr = dn * rn * reset * (1 - reset);
       T through = dn * reset;
       T back = dh * update;
       dh = on ? back : dh;
       reset = on ? dr : T(0);
       update = on ? dz : T(0);
       candidate = on ? dn : T(0);
       rn = on ? through : T(0);
       rr = reset;
       rz = update""",
)


def _parts(x: Array, count: int) -> list[Array]:
    """The gates of (rows, count * units), or of their bias."""
    units = x.shape[-1] // count
    return [x[..., k * units : (k + 1) * units] for k in range(count)]


def _on(mask: Array) -> Array | bool:
    return mask[:, None] if len(mask) else True


def lstm_cell(gates: Array, recurrent: Array, bias: Array, mask: Array, old: tuple, new: tuple, tanh_c: Array) -> None:
    _lstm(*_parts(recurrent, 4), *_parts(bias, 4), *old, _on(mask), *_parts(gates, 4), *new, tanh_c)


def lstm_cell_backward(gates: Array, tanh_c: Array, c_old: Array, mask: Array, dh: Array, dc: Array) -> None:
    _lstm_backward(tanh_c, c_old, dh, _on(mask), *_parts(gates, 4), dc)


def gru_cell(gates: Array, recurrent: Array, mask: Array, h_old: Array, h: Array) -> None:
    _gru(*_parts(recurrent, 3), h_old, _on(mask), *_parts(gates, 3), h)


def gru_cell_backward(gates: Array, recurrent: Array, mask: Array, h_old: Array, dh: Array) -> None:
    _gru_backward(h_old, _on(mask), *_parts(gates, 3), *_parts(recurrent, 3), dh)
