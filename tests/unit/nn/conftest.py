import sys
from pathlib import Path

import pytest

from ddl.arrays.kernels import use_compiled

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=["off", "auto"])
def compiled(request):
    """Run a test with the plain twins, then with compiled kernels (where Numba is installed)."""
    use_compiled(request.param)
    yield request.param
    use_compiled("auto")
