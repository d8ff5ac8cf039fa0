"""The launch environment, as it is read before MPI starts."""

from pathlib import Path

import pytest

from ddl.collectives import ring
from ddl.comm import preflight
from ddl.errors import UserError

MPIRUN = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_RANK": "2"}
RECOVERABLE = {"PRTE_MCA_state_base_recoverable": "1", "PRTE_MCA_state_base_notify_errors": "1"}


def test_four_singletons_are_rejected_with_the_reason():
    with pytest.raises(UserError, match="4 processes were started but each sees a world of 1"):
        preflight.check_world_size(1, MPIRUN)
    preflight.check_world_size(4, MPIRUN)
    preflight.check_world_size(1, {})


@pytest.mark.parametrize(
    ("environment", "possible"),
    [
        ({}, False),
        (MPIRUN, False),
        ({**MPIRUN, "OMPI_MCA_mpi_ft_enable": "1"}, True),
        ({**MPIRUN, **RECOVERABLE}, True),
        ({**MPIRUN, "PRTE_MCA_state_base_recoverable": "1"}, False),  # with this half alone survivors hang
        ({**RECOVERABLE, "PMIX_RANK": "0", "SLURM_NTASKS": "2"}, False),  # srun ends the step
        ({**RECOVERABLE, "PMI_SIZE": "4"}, False),
    ],
)
def test_both_halves_of_fault_tolerance_must_be_known(environment, possible):
    found, reason = preflight.fault_tolerance(environment)
    assert found is possible and reason


@pytest.mark.parametrize(
    ("executable", "words", "possible"),
    [
        ("prterun", "prterun -n 4 x", False),  # the user has set the variable, which is only half of it
        ("prterun", "prterun --with-ft ulfm -n 4 x", True),
        ("prterun", "prterun --prtemca state_base_recoverable 1 --prtemca state_base_notify_errors 1 x", True),
        ("prted", "prted --prtemca ess env", True),  # a daemon does not know; the ranks beside mpirun do
    ],
)
def test_the_library_alone_is_not_enough(executable, words, possible, monkeypatch):
    found = preflight._Launcher(Path("/nowhere/bin", executable), {}, tuple(words.split()))
    monkeypatch.setattr(preflight, "_launcher", lambda: found)
    tolerant, reason = preflight.fault_tolerance({**MPIRUN, "OMPI_MCA_mpi_ft_enable": "1"})
    assert tolerant is possible and ("--with-ft ulfm" in reason)


@pytest.mark.parametrize(
    ("text", "possible"),
    [
        ("state_base_recoverable = 1\nstate_base_notify_errors=1\n", True),
        ("state_base_recoverable = 1\n# state_base_notify_errors = 1\n", False),
        ("", False),
    ],
)
def test_the_launchers_parameter_file_counts(tmp_path, text, possible):
    (tmp_path / ".prte").mkdir()
    (tmp_path / ".prte" / "mca-params.conf").write_text(text)
    assert preflight.fault_tolerance({**MPIRUN, "HOME": str(tmp_path)})[0] is possible


def test_settings_keep_wrong_sums_and_wrong_threads_away():
    chosen = preflight.settings(True, MPIRUN)
    assert chosen["MPI4PY_RC_THREAD_LEVEL"] == "serialized"
    assert chosen["OMPI_MCA_coll"] == "^han,adapt"
    assert chosen["OMPI_MCA_mpi_ft_enable"] == "1" and chosen["OMPI_MCA_pml"] == "ob1"
    assert "OMPI_MCA_mpi_ft_enable" not in preflight.settings(False, MPIRUN)


def test_a_segment_of_a_ring_leaves_at_once_unless_the_user_chose():
    chosen = preflight.settings(False, MPIRUN)
    assert int(chosen["OMPI_MCA_btl_tcp_eager_limit"]) > ring.SEGMENT_BYTES
    own = {**MPIRUN, "OMPI_MCA_btl_tcp_eager_limit": "1000"}
    assert "OMPI_MCA_btl_tcp_eager_limit" not in preflight.settings(False, own)


@pytest.mark.parametrize("coll", ["^han,adapt", "^han", "tuned,libnbc"])
def test_the_users_own_components_are_kept(coll):
    assert "OMPI_MCA_coll" not in preflight.settings(True, {**MPIRUN, "OMPI_MCA_coll": coll})


@pytest.mark.parametrize("coll", ["han,basic", "^adapt"])
def test_han_is_rejected_only_with_fault_tolerance(coll):
    with pytest.raises(UserError, match="han"):
        preflight.settings(True, {**MPIRUN, "OMPI_MCA_coll": coll})
    preflight.settings(False, {**MPIRUN, "OMPI_MCA_coll": coll})


def test_ranks_that_fill_the_cores_yield_the_core_while_they_wait(monkeypatch):
    monkeypatch.setattr(preflight, "cores", lambda: 1)
    assert preflight.settings(False, MPIRUN)["OMPI_MCA_mpi_yield_when_idle"] == "1"
    assert "OMPI_MCA_mpi_yield_when_idle" not in preflight.settings(
        False, {**MPIRUN, "OMPI_MCA_mpi_yield_when_idle": "0"}
    )
    monkeypatch.setattr(preflight, "cores", lambda: 5)
    assert "OMPI_MCA_mpi_yield_when_idle" not in preflight.settings(False, MPIRUN)
