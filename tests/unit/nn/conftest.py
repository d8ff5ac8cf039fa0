import importlib
import sys
from pathlib import Path

import pytest
from cupy_on_host import DEVICE

from ddl.arrays.kernels import use_compiled

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=["numpy", "numpy, compiled", DEVICE])
def xp(request):
    """numpy with the plain twins, then with compiled kernels (where Numba is installed); cupy or its stand-in."""
    if request.param == "stand-in":
        yield request.getfixturevalue("cupy")
        return
    name, *is_compiled = request.param.split(", ")
    use_compiled("auto" if is_compiled else "off")
    yield importlib.import_module(name)
    use_compiled("auto")
