"""What the doctor makes of what it found; tests/cluster shows it at work under several MPIs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from ddl import doctor
from ddl.comm import unconnected
from ddl.launcher import checkup
from ddl.launcher.checkup import Finding, launcher, library
from ddl.launcher.probe import Launcher, attempt, try_launcher

WORDS = ("/bin/mpirun", "--oversubscribe", "-n", "4")
SURVIVES = Launcher("/bin/mpirun", WORDS, 4, "", True, True, "by its file", survives=True, with_ft=True)
ENDS = "the death of a rank ends the job"
VERDICTS = {
    "all is well": (True, SURVIVES, "the death of a rank is survived: by its file"),
    "the library cannot report it": (False, SURVIVES, f"{ENDS}: the library cannot report it; python -m ddl.launch"),
    "an option is missing": (
        True,
        replace(SURVIVES, tolerant=False, survives=False, reason="no option"),
        f"{ENDS}: no option; python -m ddl.doctor --enable-fault-tolerance",
    ),
    "the environment says so, and it is not so": (True, replace(SURVIVES, survives=False), f"{ENDS}: by its file;"),
    "mpirun cannot": (
        True,
        replace(SURVIVES, survives=False, with_ft=False),
        f"{ENDS}: this mpirun ends all processes when one dies; python -m ddl.launch",
    ),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_the_finding_says_what_happens_to_a_job_whose_rank_dies(case):
    can_report, found, said = VERDICTS[case]
    *others, last = launcher(can_report, found.path, lambda path: found)
    assert last.text.startswith(said) and last.ends is not last.good
    assert "mpirun --oversubscribe -n 4 python -m ddl.doctor" in others[0].text
    text = doctor.report([*others, last])
    assert ("No problems found." in text) is last.good
    assert ("Jobs can run, but:" in text) is last.ends


def test_mpirun_and_library_of_two_installations_are_found():
    *_, last = launcher(True, "/bin/mpirun", lambda path: replace(SURVIVES, met=False))
    assert last.wrong and "do not go together" in last.text


def test_an_mpirun_that_starts_nothing_says_why(tmp_path):
    path = tmp_path / "mpirun"
    path.write_text("#!/bin/sh\necho there are no slots\nexit 1\n")
    path.chmod(0o755)
    found = try_launcher(str(path))
    assert (found.words, found.why) == ((), "there are no slots")
    (finding,) = launcher(True, str(path))
    assert finding.wrong and "does not start a job of 4 processes: there are no slots" in finding.text


def test_the_way_to_start_four_ranks_is_the_first_that_works(tmp_path):
    path = tmp_path / "mpirun"
    path.write_text('#!/bin/sh\n[ "$1" = --oversubscribe ] || exit 1\n')
    path.chmod(0o755)
    assert try_launcher(str(path)).words == (str(path), "--oversubscribe", "-n", "4")


def test_a_hanging_command_is_ended():
    tried = attempt(["sh", "-c", "echo FOUND; sleep 60"], 0.2)
    assert tried.last == "it did not end within 0 s" and tried.status != 0


def test_a_missing_library_and_a_missing_package_are_named(monkeypatch, tmp_path):
    ((finding,), can_report) = library(lambda: ({}, "libmpi.so: cannot open"))
    assert finding.wrong and not can_report and "cannot be loaded: libmpi.so: cannot open" in finding.text
    (tmp_path / "libmpich.so.12").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f":{tmp_path}")
    ((finding,), _) = library(lambda: ({}, "libmpi.so.12: cannot open"))
    assert f"ln -s {tmp_path}/libmpich.so.12 " in finding.text
    monkeypatch.setattr(checkup, "version_of", lambda package: None)
    ((finding,), _) = library()
    assert finding.wrong and "mpi4py is missing" in finding.text


def test_a_missing_home_is_named_before_mpi_is_tried(monkeypatch):
    monkeypatch.delenv("HOME")
    ((finding,), can_report) = library(lambda: ({}, "Failed initializing opal: -1"))
    assert finding.wrong and not can_report and "HOME is not set" in finding.text and "export HOME=" in finding.text


def test_the_report_ends_with_the_problems():
    text = doctor.report(
        [Finding("A", True, "fine"), Finding("B", False, "broken", True), Finding("B", False, "dies", ends=True)]
    )
    assert text.splitlines()[-2:] == ["1 problem would prevent a job:", "    broken"]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, ""),
        ({"SLURM_NTASKS": "1"}, ""),
        ({"SLURM_NTASKS": "4", "PMIX_RANK": "0"}, ""),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}, "SLURM_NTASKS is 4, but this process trains alone"),
        ({"WORLD_SIZE": "8"}, "WORLD_SIZE is 8, but this process trains alone"),
    ],
)
def test_a_process_that_was_meant_to_be_one_of_several_is_noticed(environment, said):
    assert unconnected(environment).startswith(said) and bool(unconnected(environment)) is bool(said)


WITHOUT_NUMPY = """
import importlib.metadata, runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "numpy":
            raise ModuleNotFoundError("No module named 'numpy'")
sys.meta_path.insert(0, Absent())
version = importlib.metadata.version
def without(name):
    if name == "numpy":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = without
sys.argv = ["ddl", "doctor"]
runpy.run_module("ddl", run_name="__main__")
"""


def test_an_environment_without_numpy_is_examined():
    done = subprocess.run([sys.executable, "-c", WITHOUT_NUMPY], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and not done.stderr
    assert done.stdout.splitlines()[-1].strip() == "numpy is missing"


def test_every_extra_of_the_package_is_listed_by_the_doctor(monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda package: None)
    text = " ".join(finding.text for finding in doctor.software())
    for extra in ("fast", "gpu", "plot", "arrow", "images", "onnx", "tensorboard", "torch", "jax"):
        assert f"extra {extra}:" in text
    assert "onnxruntime" in text
