"""Ranks of one node share its cores, in any order of imports; the user's own settings are kept."""

from __future__ import annotations

import os

import pytest

from ddl.launcher.cores import VARIABLES, choose_kernels, share

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize("ranks", [2, 3, 2 * CORES, 4 * CORES])
def test_ranks_of_a_node_share_its_cores(ranks):
    found = share({"OMPI_COMM_WORLD_LOCAL_SIZE": str(ranks)})
    assert found is not None and found >= 1 and (found * ranks <= CORES or found == 1)


@pytest.mark.parametrize("said", [{}, {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}])
def test_one_rank_has_the_node_for_itself(said):
    assert share(said) is None


@pytest.mark.parametrize("name", VARIABLES)
def test_settings_of_the_user_are_kept(name):
    assert share({"OMPI_COMM_WORLD_LOCAL_SIZE": "2", name: "7"}) is None


@pytest.mark.parametrize(
    ("vendor", "family", "flags", "wanted"),
    [
        ("AuthenticAMD", 25, "fpu avx2 avx512f", {"OPENBLAS_CORETYPE": "Zen"}),
        ("AuthenticAMD", 25, "fpu avx2", {}),
        ("AuthenticAMD", 26, "fpu avx2 avx512f", {}),
        ("GenuineIntel", 6, "fpu avx2 avx512f", {}),
    ],
)
def test_only_a_zen_4_takes_other_kernels(vendor, family, flags, wanted, tmp_path):
    one = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nflags\t\t: {flags}\npower management:\n\n"
    (tmp_path / "cpuinfo").write_text(one + one.replace(": 0", ": 1"))
    environ: dict[str, str] = {}
    choose_kernels(environ, str(tmp_path / "cpuinfo"))
    assert environ == wanted
    said = {"OPENBLAS_CORETYPE": "Haswell"}
    choose_kernels(said, str(tmp_path / "cpuinfo"))
    choose_kernels(environ, str(tmp_path / "nowhere"))
    assert said == {"OPENBLAS_CORETYPE": "Haswell"} and environ == wanted
