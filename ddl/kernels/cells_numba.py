# mypy: disable-error-code="untyped-decorator,no-untyped-def,call-overload"
"""Numba kernels of cells.py: each time step is one pass over its arrays."""

from __future__ import annotations

from numba import njit

from ddl.kernels.maths_numba import sigmoid, tanh


@njit(cache=True, nogil=True, error_model="numpy")
def lstm_cell(gates, recurrent, bias, mask, old, new, tanh_c):
    rows, units = gates.shape[0], gates.shape[1] // 4
    c_old, h_old = old
    c, h = new
    masked = len(mask) > 0
    for row in range(rows):
        if masked and not mask[row]:
            for j in range(units):
                c[row, j] = c_old[row, j]
                h[row, j] = h_old[row, j]
            continue
        gate, more = gates[row], recurrent[row]
        for j in range(2 * units):
            gate[j] = sigmoid(gate[j] + more[j] + bias[j])
        for j in range(2 * units, 3 * units):
            gate[j] = tanh(gate[j] + more[j] + bias[j])
        for j in range(3 * units, 4 * units):
            gate[j] = sigmoid(gate[j] + more[j] + bias[j])
        for j in range(units):
            cell = gate[units + j] * c_old[row, j] + gate[j] * gate[2 * units + j]
            squashed = tanh(cell)
            c[row, j] = cell
            tanh_c[row, j] = squashed
            h[row, j] = gate[3 * units + j] * squashed


@njit(cache=True, nogil=True, error_model="numpy")
def lstm_cell_backward(gates, tanh_c, c_old, mask, dh, dc):
    rows, units = gates.shape[0], gates.shape[1] // 4
    one = gates.dtype.type(1)
    masked = len(mask) > 0
    for row in range(rows):
        gate = gates[row]
        if masked and not mask[row]:
            for j in range(4 * units):
                gate[j] = 0
            continue
        for j in range(units):
            i, f, g, o = gate[j], gate[units + j], gate[2 * units + j], gate[3 * units + j]
            t = tanh_c[row, j]
            inner = dc[row, j] + dh[row, j] * o * (one - t * t)
            gate[j] = inner * g * i * (one - i)
            gate[units + j] = inner * c_old[row, j] * f * (one - f)
            gate[2 * units + j] = inner * i * (one - g * g)
            gate[3 * units + j] = dh[row, j] * t * o * (one - o)
            dc[row, j] = inner * f


@njit(cache=True, nogil=True, error_model="numpy")
def gru_cell(gates, recurrent, mask, h_old, h):
    rows, units = gates.shape[0], gates.shape[1] // 3
    masked = len(mask) > 0
    for row in range(rows):
        if masked and not mask[row]:
            for j in range(units):
                h[row, j] = h_old[row, j]
            continue
        gate, more = gates[row], recurrent[row]
        for j in range(2 * units):
            gate[j] = sigmoid(gate[j] + more[j])
        for j in range(units):
            n = tanh(gate[2 * units + j] + gate[j] * more[2 * units + j])
            gate[2 * units + j] = n
            h[row, j] = n + gate[units + j] * (h_old[row, j] - n)


@njit(cache=True, nogil=True, error_model="numpy")
def gru_cell_backward(gates, recurrent, mask, h_old, dh):
    rows, units = gates.shape[0], gates.shape[1] // 3
    one = gates.dtype.type(1)
    masked = len(mask) > 0
    for row in range(rows):
        gate, more = gates[row], recurrent[row]
        if masked and not mask[row]:
            for j in range(3 * units):
                gate[j] = 0
                more[j] = 0
            continue
        for j in range(units):
            r, z, n = gate[j], gate[units + j], gate[2 * units + j]
            slope = dh[row, j]
            dn = slope * (one - z) * (one - n * n)
            dz = slope * (h_old[row, j] - n) * z * (one - z)
            dr = dn * more[2 * units + j] * r * (one - r)
            gate[j], gate[units + j], gate[2 * units + j] = dr, dz, dn
            more[j], more[units + j], more[2 * units + j] = dr, dz, dn * r
            dh[row, j] = slope * z
