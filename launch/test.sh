#!/usr/bin/env bash
# Sets up this checkout and runs every test that this machine can run; exits with 0 if all of them passed.
#
#   launch/test.sh            all of them
#   launch/test.sh unit mpi   some of: lint unit mpi jobs fault cluster torch
#
# Each part ends with pytest's closing lines. A part that runs no test at all has failed.
set -uo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/environment.sh"

for name in "$@"; do
  case $name in
    lint | unit | mpi | jobs | fault | cluster | torch) ;;
    *) usage_error "there is no part $name; there are: lint unit mpi jobs fault cluster torch" ;;
  esac
done

prepare test
cd "$ROOT" || exit 1
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
# Hundreds of jobs start Python on every rank: without a bytecode cache each of them would compile the package again.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX=$VENV/pycache
python -m ddl.launcher.leftovers # of killed jobs, with which mpirun may fail to start
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
failed=()

# part NAME SECONDS COMMAND...: run it, show the end of what it printed, remember when it failed
part() {
  local name=$1 seconds=$2 status
  shift 2
  timeout -k 10 "$seconds" "$@" >"$logs/log" 2>&1
  status=$?
  if [ $status -ne 0 ]; then
    cat "$logs/log"
    failed+=("$name")
    [ $status -eq 124 ] || [ $status -eq 137 ] && echo "$name: not done after $seconds s"
    echo "== $name: FAILED (status $status)"
  else
    tail -n 4 "$logs/log"
    echo "== $name: passed"
  fi
}

# Under mpirun every rank prints a report; the first one's is shown. mpirun's own status proves nothing, so each
# rank's report must say that tests passed.
ranks() {
  mpirun -n "$1" bash -c \
    'python -m pytest --with-mpi -q tests/mpi -o faulthandler_timeout=90 >"$0.$OMPI_COMM_WORLD_RANK" 2>&1' "$logs/mpi-$1"
  local status=$? rank
  for ((rank = 0; rank < $1; rank++)); do
    grep -qE '[0-9]+ passed' "$logs/mpi-$1.$rank" && continue
    cat "$logs/mpi-$1.$rank"
    echo "rank $rank of $1: no test passed"
    status=1
  done
  [ $status -eq 0 ] || grep -hE '^(FAILED|ERROR)|[0-9]+ failed' "$logs/mpi-$1".*
  tail -n 1 "$logs/mpi-$1.0"
  return $status
}
export -f ranks
export logs VENV

# PyTorch and JAX are in a separate folder that only this part uses: all other parts prove that ddl does without them.
# The second index has builds without CUDA, which are preferred where it can be reached.
with_torch() {
  if [ ! -e "$VENV/torch/.installed" ]; then
    python -m pip install --disable-pip-version-check --retries 1 --target "$VENV/torch" --upgrade \
      --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0 || return
    # What else JAX needs is there: NumPy and SciPy.
    python -m pip install --disable-pip-version-check --target "$VENV/torch" --no-deps \
      jax jaxlib ml_dtypes opt_einsum optax absl-py equinox jaxtyping wadler-lindig || return
    : >"$VENV/torch/.installed"
  fi
  export PYTHONPATH=$VENV/torch${PYTHONPATH:+:$PYTHONPATH}
  python -c 'import torch; print("PyTorch", torch.__version__)' || return
  python -c 'import jax; print("JAX", jax.__version__)' || return
  # shellcheck disable=SC2046
  python -m pytest -q -n auto $(grep -rlE 'importorskip\("(torch|jax)"' tests/unit) || return
  # shellcheck disable=SC2046
  python -m pytest -q $(grep -rlE 'importorskip\("(torch|jax)"' tests/jobs tests/fault)
}
export -f with_torch

torch_tests() {
  local status
  with_torch 2>&1 | tee "$logs/torch"
  status=${PIPESTATUS[0]}
  grep -qE "(PyTorch|JAX) is not installed|could not import 'torch'" "$logs/torch" && return 1
  return "$status"
}
export -f torch_tests

wanted=" ${*:-lint unit mpi jobs fault cluster torch} "
for name in $wanted; do
  case $name in
    lint)
      part "ruff check" 120 ruff check .
      part "ruff format" 120 ruff format --check .
      part mypy 600 mypy
      ;;
    unit) part unit 1800 python -m pytest -q -n auto tests/unit tests/test_layout.py ;;
    mpi) for n in 1 2 3 4; do part "mpi on $n ranks" 600 bash -c "ranks $n"; done ;;
    jobs) part jobs 3600 python -m pytest -q tests/jobs ;;
    fault) part fault 7200 python -m pytest -q tests/fault ;;
    cluster) part cluster 3600 python -m pytest -q tests/cluster ;;
    torch) part torch 3600 bash -c torch_tests ;;
  esac
done

[ ${#failed[@]} -eq 0 ] || { printf 'failed:'; printf ' %s;' "${failed[@]}"; echo; exit 1; }
echo "all passed"
