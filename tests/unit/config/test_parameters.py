"""MPI's parameter files, and the doctor that writes them."""

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


def test_the_doctor_says_that_mpi4py_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda package: None)
    (finding,) = doctor.mpi()
    assert finding.wrong and "mpi4py is missing" in finding.text


def test_the_doctor_says_why_a_library_does_not_load():
    (finding,) = doctor.mpi(lambda: ({}, "libmpi.so: cannot open"))
    assert finding.wrong and "cannot be loaded: libmpi.so: cannot open" in finding.text


def test_the_doctor_finds_a_mpirun_of_another_installation(tmp_path):
    for home in ("wheel", "module"):
        (tmp_path / home / "bin").mkdir(parents=True)
        (tmp_path / home / "lib").mkdir()
    library = str(tmp_path / "module" / "lib" / "libmpi.so.40")
    (finding,) = doctor._mpirun([library], str(tmp_path / "wheel" / "bin" / "mpirun"))
    assert finding.wrong and "two installations" in finding.text
    (finding,) = doctor._mpirun([library], str(tmp_path / "module" / "bin" / "mpirun"))
    assert finding.good


def test_the_report_ends_with_the_problems():
    text = doctor.report([doctor.Finding("A", True, "fine"), doctor.Finding("B", False, "broken", True)])
    assert text.splitlines() == [
        "A:",
        "    [X] fine",
        "",
        "B:",
        "    [ ] broken",
        "",
        "1 problem(s) would prevent a job:",
        "    broken",
    ]


def test_the_doctor_rejects_unknown_arguments(capsys):
    assert doctor.main(["--heal"]) == 2
    assert capsys.readouterr().err == "ddl.doctor: there is no option --heal; see --help\n"
