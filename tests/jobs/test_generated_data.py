"""Whatever a person brings: training learns, or one line says why not. ``generated_data.py`` runs as many as asked."""

import pytest

from .generated_cases import make
from .generated_data import outcome


@pytest.mark.parametrize("seed", range(40))
def test_a_generated_data_set_is_learned_or_refused_or_warned_of(tmp_path, seed):
    case = make(seed, tmp_path)
    assert outcome(case, tmp_path).split(":")[0] in ("learned", "refused", "warned"), case.text
