"""The commands and scripts on the pages of docs/ run as they are written."""

from __future__ import annotations

import pytest

from .pages import ROOT, all_pages, run_page


@pytest.mark.parametrize("path", all_pages(), ids=lambda path: path.relative_to(ROOT / "docs").as_posix())
def test_the_blocks_of_a_page_run_as_they_are_written(path, tmp_path):
    assert run_page(path, tmp_path)
