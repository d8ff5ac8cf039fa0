"""The job files in launch/jobs are jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddl.config import load

JOBS = sorted((Path(__file__).resolve().parents[3] / "launch" / "jobs").glob("*.toml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_of_the_catalogue_is_valid_and_called_like_its_file(path):
    assert load([str(path)], ranks=4).run.name == path.stem


def test_the_catalogue_is_not_empty():
    assert JOBS
