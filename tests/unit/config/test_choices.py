"""The choices listed in the settings are exactly the ones implemented."""

from __future__ import annotations

from typing import get_args

from ddl.config.sections import SECTIONS
from ddl.config.values import types_of


def choices(section: str, field: str) -> set[str]:
    return set(get_args(types_of(SECTIONS[section])[field]))


def test_schedules():
    from ddl.optim import SCHEDULES

    assert choices("optim", "schedule") == set(SCHEDULES)


def test_normalisations():
    from ddl.data.normalise import KINDS

    assert choices("data", "normalize") == {"auto", "none", *KINDS}


def test_the_help_of_comm_algorithm_names_every_algorithm():
    from ddl.collectives import TABLE

    meaning = SECTIONS["comm"].__dataclass_fields__["algorithm"].metadata["meaning"]
    assert all(name in meaning for name in ("auto", *TABLE))
