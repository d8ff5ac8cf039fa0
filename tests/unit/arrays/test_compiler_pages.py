"""The resident memory of a rank whose kernels are compiled."""

import re
from pathlib import Path

import numpy as np
import pytest

from ddl.kernels.backend import is_compiled
from ddl.kernels.compiler_pages import drop_compiler_pages
from ddl.kernels.sums import add_rows


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads /proc/self/smaps")
def test_the_compiler_s_code_leaves_resident_memory_and_kernels_still_work():
    pytest.importorskip("numba")
    if not is_compiled():
        pytest.skip("kernels are not compiled here")
    rows, out = np.ones((2, 64), np.float32), np.zeros(64, np.float32)
    add_rows(out, rows, 0, 64, 0)

    def code_kib():
        mappings = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
        code = [one for one in mappings if re.match(r"\S+ r-xp .*libllvmlite", one)]
        return sum(int(re.search(r"Rss:\s+(\d+)", one)[1]) for one in code)

    before = code_kib()
    drop_compiler_pages()
    assert code_kib() < before / 4
    out[:] = 0
    add_rows(out, rows.astype(np.float32), 0, 64, 0)
    assert (out == 2).all()
