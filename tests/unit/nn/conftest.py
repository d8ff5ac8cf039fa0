import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def xp(spelling):
    """Each test of a layer or a loss runs on every spelling of the kernels that it calls."""
    return spelling
