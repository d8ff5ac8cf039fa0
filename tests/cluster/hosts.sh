#!/usr/bin/env bash
# Several hosts on one machine, as root: each has its own host name, address, process table and /dev/shm.
# They share files, as over a cluster's file system, and divide the machine's cores among them, so that one host's
# ranks do not use those of another host.
#
#   hosts.sh start N [RATE]   make N hosts that each send at most RATE (as tc writes it, such as 1gbit; default: unshaped)
#   hosts.sh mpirun WORDS...  mpirun over them, from outside as from a login node; -n and --bind-to none are the caller's
#   hosts.sh exec I WORDS...  run a command on host I
#   hosts.sh pids I           the processes of host I, as numbers of this machine
#   hosts.sh stop             end and remove all that start has made
#
# DDL_HOSTS_TAG (at most 8 letters and digits) names the set; sets with different names do not meet.
# DDL_HOSTS_SLOTS is how many ranks mpirun puts on a host (default 2).
set -u
TAG=${DDL_HOSTS_TAG:-ddlh}
STATE=${TMPDIR:-/tmp}/ddl-hosts-$TAG
NET=10.78.$(($(cksum <<<"$TAG" | cut -d' ' -f1) % 250))
BRIDGE=${TAG}br
SELF=$(readlink -f "$0")
PATH=$PATH:/usr/sbin:/sbin

die() { echo "hosts.sh: $*" >&2; exit 1; }

init_of() { # the first process of host I, below the unshare that made it
  local outer children
  outer=$(cat "$STATE/$1" 2>/dev/null) || die "there is no host $1"
  children=$(cat "/proc/$outer/task/$outer/children" 2>/dev/null) && [ -n "$children" ] || die "host $1 is gone"
  echo "${children%% *}"
}

cores() { taskset -cp "$1" | sed 's/.*: //'; } # of process $1, such as 0-3,8


start() {
  local count=$1 rate=${2:-} i
  [ "$(id -u)" = 0 ] || die "only root can make network namespaces"
  mkdir "$STATE" 2>/dev/null || die "$STATE exists: hosts.sh stop removes it"
  trap 'stop; die "could not make the hosts"' ERR
  set -eE
  local cores first own
  mapfile -t cores < <(for range in $(cores $$ | tr , ' '); do seq "${range%-*}" "${range#*-}"; done)
  ip link add "$BRIDGE" type bridge
  ip addr add "$NET.254/24" dev "$BRIDGE"
  ip link set "$BRIDGE" up
  : >"$STATE/hosts"
  for i in $(seq "$count"); do
    ip netns add "$TAG$i"
    ip link add "${TAG}v$i" type veth peer name eth0 netns "$TAG$i"
    ip link set "${TAG}v$i" master "$BRIDGE" up
    ip -n "$TAG$i" link set lo up
    ip -n "$TAG$i" addr add "$NET.$i/24" dev eth0
    ip -n "$TAG$i" link set eth0 up
    # A burst must hold the largest packet that the kernel hands over at once, 64 KiB and a little.
    [ -z "$rate" ] || ip netns exec "$TAG$i" tc qdisc add dev eth0 root tbf rate "$rate" burst 128kb latency 50ms
    first=$(((i - 1) * ${#cores[@]} / count))
    own=$((i * ${#cores[@]} / count - first))
    setsid taskset -c "$(IFS=,; echo "${cores[*]:first:own > 0 ? own : 1}")" nsenter --net="/run/netns/$TAG$i" unshare --uts --ipc --pid --mount --fork --kill-child=KILL --mount-proc \
      bash -c 'hostname "$1"; mount -t tmpfs tmpfs /dev/shm; touch /dev/shm/.up; while :; do sleep 3600 & wait; done' \
      - "$TAG$i" </dev/null >/dev/null 2>&1 &
    disown
    echo $! >"$STATE/$i"
    echo "$NET.$i" >>"$STATE/hosts"
  done
  for i in $(seq "$count"); do
    for _ in $(seq 100); do
      on_host "$i" test -e /dev/shm/.up 2>/dev/null && continue 2
      sleep 0.05
    done
    false
  done
}

on_host() { # I COMMAND...
  local i=$1 init
  shift
  init=$(init_of "$i") || return 1
  # Temporary files go where they vanish with the host.
  nsenter -t "$init" -m -u -i -n -p -- taskset -c "$(cores "$init")" env TMPDIR=/dev/shm "$@"
}

# mpirun's remote shell: [options] ADDRESS COMMAND LINE...
agent() {
  while [[ ${1:-} == -* ]]; do shift; done
  local address=$1
  shift
  on_host "${address##*.}" bash -c "$*"
}

run_mpi() {
  local addresses
  addresses=$(sed "s/\$/:${DDL_HOSTS_SLOTS:-2}/" "$STATE/hosts" | paste -sd,)
  export DDL_HOSTS_TAG=$TAG
  exec mpirun --host "$addresses" --prtemca plm_ssh_agent "$SELF agent" --prtemca prte_if_include "$NET.0/24" \
    --mca btl_tcp_if_include "$NET.0/24" "$@"
}

pids() {
  local init namespace p
  init=$(init_of "$1") || exit 1
  namespace=$(readlink "/proc/$init/ns/pid")
  for p in /proc/[0-9]*; do
    [ "$(readlink "$p/ns/pid" 2>/dev/null)" = "$namespace" ] && echo "${p#/proc/}"
  done
}

stop() {
  set +e
  trap - ERR
  local file pid init name
  for file in "$STATE"/[0-9]*; do
    [ -e "$file" ] || continue
    # A first process ends behind all others of its host, and the unshare that made it behind that.
    init=$(init_of "${file##*/}" 2>/dev/null) || continue
    pid=$(cat "$file")
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = unshare ] && kill -KILL "$init"
    for _ in $(seq 100); do
      grep -qs '^[0-9]* (unshare) [^Z]' "/proc/$pid/stat" || break
      sleep 0.02
    done
  done
  for name in /run/netns/"$TAG"[0-9]*; do
    [ -e "$name" ] || continue
    name=${name##*/}
    ip link del "${TAG}v${name#"$TAG"}" 2>/dev/null # the kernel would get round to it some time later
    ip netns del "$name"
  done
  ip link del "$BRIDGE" 2>/dev/null
  rm -rf "$STATE"
}

verb=${1:-}
[ $# -gt 0 ] && shift
case $verb in
  start) [ $# -ge 1 ] || die "how many hosts?"; start "$@" ;;
  mpirun) [ -e "$STATE/hosts" ] || die "no hosts: hosts.sh start N"; run_mpi "$@" ;;
  agent) agent "$@" ;;
  exec) on_host "$@" ;;
  pids) pids "$1" ;;
  stop) stop ;;
  *) sed -n '2,/^set -u/{/^#/s/^# \{0,1\}//p}' "$SELF"; exit 2 ;;
esac
