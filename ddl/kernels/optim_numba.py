# mypy: disable-error-code="untyped-decorator,no-untyped-def"
"""Numba loops around the rules of optim.py: one pass over the arrays, in place or from one set of arrays to another.

In-place and out-of-place loops are two functions because arrays that might overlap keep LLVM from vectorising. Without
fastmath LLVM neither reorders nor contracts, so a loop gives the bits of the NumPy pass; error_model="numpy" drops the
zero checks that would also prevent vectorising."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numba import njit


@cache
def loop(rule: Callable[..., Any], arrays: int, into: bool) -> Callable[..., None]:
    """The compiled loop of ``rule``: loop(constants, grads, *state), or loop(constants, grads, *old, *new).

    arrays: how many there are in ``state``: the parameters and the slots."""
    name = f"{rule.__name__}_into" if into else rule.__name__
    old = [f"x{k}" for k in range(arrays)]
    new = [f"y{k}" for k in range(arrays)] if into else old
    elements = [f"{x}[i]" for x in old]
    slots = "".join(f"{x}, " for x in elements[1:])
    source = (
        f"def {name}(constants, g, {', '.join(old + new if into else old)}):\n"
        f"    for i in range(g.size):\n"
        f"        {''.join(f'{y}[i], ' for y in new)} = rule({elements[0]}, g[i], ({slots}), constants)\n"
    )
    scope = {"__name__": __name__, "rule": njit(error_model="numpy")(rule)}
    # Numba keeps compiled code on disk by the file and name of a function, and drops it when that file changes.
    exec(compile(source, rule.__code__.co_filename, "exec"), scope)
    return njit(cache=True, nogil=True, error_model="numpy")(scope[name])
