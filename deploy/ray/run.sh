#!/bin/sh
# Join a Ray cluster as the node that the learner runs on, and run a command there, such as qherd train: Ray wants
# a node of its own where a driver is. The command gets SIGTERM and SIGINT; its exit code is this script's.
#
#   RAY_AUTH_TOKEN_PATH=ray.token deploy/ray/run.sh HEAD:6380 qherd train --mode cluster --ray.address HEAD:6380 ...
#
# JOIN_OPTIONS   options of ray start (default: no CPU for actors, and the resource that the learner asks for)
set -eu
. "$(dirname "$0")/env.sh"

[ $# -ge 2 ] || { echo "usage: $0 HEAD:PORT COMMAND..." >&2; exit 2; }
head="$1"
shift
default_options='--num-cpus=0 --resources={"qherd_learner":1}'
ip="${NODE_IP:-}"
JOIN_OPTIONS="${JOIN_OPTIONS:-$default_options}"
stopped=""
command=""
trap 'stopped=1; [ -z "$command" ] || kill -TERM "$command" 2>/dev/null' TERM INT

await_port "${head%:*}" "${head##*:}" "${JOIN_S:-300}" || exit 1
ip="${ip:-$(address_towards "${head%:*}")}"
# setsid: a terminal's Ctrl-C is for the command, which needs the node until it has ended.
# shellcheck disable=SC2086 # several words
setsid ray start --block --disable-usage-stats --address="$head" --node-ip-address="$ip" \
  --object-store-memory="$OBJECT_STORE_BYTES" $JOIN_OPTIONS &
node=$!
code=1
until python3 "$(dirname "$0")/healthy.py" "$head" "$ip" 2>/dev/null; do
  if [ -n "$stopped" ] || ! kill -0 "$node" 2>/dev/null; then
    echo "$0: this node could not join $head" >&2
    break
  fi
  sleep 1
done
if [ -z "$stopped" ] && kill -0 "$node" 2>/dev/null; then
  "$@" &
  command=$!
  code=0
  wait "$command" || code=$?
  while kill -0 "$command" 2>/dev/null; do # wait also returns on a signal
    code=0
    wait "$command" || code=$?
  done
fi
kill -TERM "$node" 2>/dev/null || true
wait "$node" 2>/dev/null || true
exit "$code"
