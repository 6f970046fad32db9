#!/bin/sh
# Join a Ray cluster as a worker node, in the foreground, and join again whenever the connection was lost; ends on
# SIGTERM, or when the head has not been there for JOIN_S seconds.
#
#   RAY_AUTH_TOKEN_PATH=ray.token deploy/ray/worker.sh HEAD:6380 [options of ray start]
#
# NODE_IP   the address that other nodes reach this one by   (default: the one that leads to the head)
# JOIN_S    300
set -eu
. "$(dirname "$0")/env.sh"

[ $# -ge 1 ] || { echo "usage: $0 HEAD:PORT [options of ray start]" >&2; exit 2; }
head="$1"
shift
ended=""
ray=""
# The head that is lost takes the node with it (Ray ends what it has declared dead), so this comes back by itself.
trap 'ended=1; [ -z "$ray" ] || kill -TERM "$ray" 2>/dev/null' TERM INT

while [ -z "$ended" ]; do
  await_port "${head%:*}" "${head##*:}" "${JOIN_S:-300}" || exit 1
  [ -z "$ended" ] || break
  ray start --block --disable-usage-stats --address="$head" \
    --node-ip-address="${NODE_IP:-$(address_towards "${head%:*}")}" \
    --object-store-memory="$OBJECT_STORE_BYTES" "$@" &
  ray=$!
  wait "$ray" || echo "$0: the node has left $head (exit code $?)" >&2
  # wait also returns on a signal: then the node is still going down
  [ -z "$ended" ] || wait "$ray" 2>/dev/null || true
  ray=""
  [ -n "$ended" ] || sleep "${REJOIN_S:-2}"
done
