#!/bin/sh
# An authority of your own and a certificate of the replay server, for rediss:// URLs. Run where the secrets are made:
#
#   deploy/ray/certificates.sh FOLDER HOST...      FOLDER/{ca.crt,tls.crt,tls.key}; HOST: names or addresses
#
# ca.crt goes to every node; tls.key to the server alone. The authority's own key is not kept: a new certificate is a
# new authority. DAYS: 825.
set -eu
[ $# -ge 2 ] || { echo "usage: $0 FOLDER HOST..." >&2; exit 2; }
umask 077
folder="$1"
shift
names=""
for host; do
  case "$host" in
  *:*) names="$names,IP:$host" ;;
  *[!0-9.]*) names="$names,DNS:$host" ;;
  *) names="$names,IP:$host" ;;
  esac
done
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir -p "$folder"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days "${DAYS:-825}" -subj "/CN=qherd CA" \
  -keyout "$work/ca.key" -out "$work/ca.crt" 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$1" \
  -keyout "$work/tls.key" -out "$work/tls.csr" 2>/dev/null
printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "${names#,}" >"$work/extensions"
openssl x509 -req -in "$work/tls.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial \
  -days "${DAYS:-825}" -extfile "$work/extensions" -out "$work/tls.crt" 2>/dev/null
mv "$work/ca.crt" "$work/tls.crt" "$work/tls.key" "$folder/"
