#!/bin/sh
# Start Ray's head node in the foreground; it ends, with all that is on it, on SIGTERM.
#
#   RAY_AUTH_TOKEN_PATH=ray.token deploy/ray/head.sh [options of ray start]
#
# NODE_IP      the address that other nodes reach this one by   (default: that of this machine's name)
# RAY_PORT     6380
# On the node that is to have the learner, add the resource that it asks for:
#   deploy/ray/head.sh --num-cpus=0 --resources='{"qherd_learner": 1}'
set -eu
. "$(dirname "$0")/env.sh"

NODE_IP="${NODE_IP:-$(address_towards "$(hostname)")}"
case "$NODE_IP" in
127.* | ::1)
  echo "$0: $(hostname) is $NODE_IP, which other nodes cannot reach: set NODE_IP to this node's address" >&2
  exit 2
  ;;
esac

exec ray start --head --block --disable-usage-stats --port="$RAY_PORT" --node-ip-address="$NODE_IP" \
  --dashboard-host=127.0.0.1 --object-store-memory="$OBJECT_STORE_BYTES" "$@"
