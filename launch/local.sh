#!/usr/bin/env bash
# Sets up this checkout on a fresh machine and runs a job on it; the set-up is done once.
#
#   launch/local.sh [-n N] [job.toml] [--section.key value ...]
#
# Without a job: a small CNN on the bundled handwritten digits, on 4 ranks.
set -euo pipefail
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/environment.sh"

ranks=4
words=()
while [ $# -gt 0 ]; do
  case $1 in
    -n)
      [ $# -ge 2 ] || usage_error "-n needs a number of ranks"
      ranks=$2
      shift
      ;;
    -n*) ranks=${1#-n} ;;
    --help | -h)
      sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      is_prepared run || { echo "All settings are listed once it is set up."; exit 0; }
      activate
      exec python -m ddl.train --help
      ;;
    *) words+=("$1") ;;
  esac
  shift
done
case $ranks in '' | *[!0-9]* | 0) usage_error "-n $ranks: the number of ranks is a whole number above 0" ;; esac

prepare run
exec mpirun -n "$ranks" python -m ddl.train ${words[@]+"${words[@]}"}
