"""MPI's parameter files, which the doctor writes."""

from __future__ import annotations

import pytest

from ddl import doctor
from ddl.errors import UserError
from ddl.launcher.mca_files import enable_fault_tolerance, launcher_file, with_parameters

LINES = ["state_base_recoverable = 1", "state_base_notify_errors = 1", "rmaps_default_mapping_policy = :oversubscribe"]


def test_the_lines_are_written_once_and_earlier_lines_stay(tmp_path):
    path = tmp_path / "etc" / "prte-mca-params.conf"
    enable_fault_tolerance(path)
    assert path.read_text().splitlines() == LINES
    path.write_text("# mine\nplm_ssh_agent = ssh\nstate_base_recoverable = 0 # off\n")
    enable_fault_tolerance(path)
    first = path.read_text()
    assert enable_fault_tolerance(path)[0].startswith(f"{path} was already right")
    assert path.read_text() == first
    assert first.splitlines() == ["# mine", "plm_ssh_agent = ssh", *LINES]


def test_a_mapping_of_the_users_own_is_kept():
    text = with_parameters("a = slot\n", {"a": ":oversubscribe", "b": "1"}, keep=frozenset("a"))
    assert text == "a = slot\nb = 1\n"


def test_an_unwritable_file_is_reported_with_the_variable_to_export_instead(tmp_path):
    (tmp_path / "etc").touch()
    with pytest.raises(UserError, match="export PRTE_MCA_state_base_recoverable=1 PRTE_MCA_state_base_notify_errors=1"):
        enable_fault_tolerance(tmp_path / "etc" / "prte-mca-params.conf")


def test_an_mpirun_that_is_not_open_mpi_5_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"not Open MPI 5's"):
        launcher_file(str(tmp_path / "bin" / "mpirun"))


def test_the_doctor_rejects_unknown_arguments(capsys):
    assert doctor.main(["--heal"]) == 2
    assert capsys.readouterr().err == "ddl.doctor: there is no option --heal; did you mean '--help'?\n"
