# shellcheck shell=sh
# What head.sh, worker.sh and run.sh have in common: sourced by them, of no use by itself. Each setting may be given in
# the environment instead; KubeRay's and Slurm's files set the same ones.

# Whoever can talk to an open Ray cluster can run code on it (CVE-2023-48022, "ShadowRay").
export RAY_AUTH_MODE=token
if [ -z "${RAY_AUTH_TOKEN:-}" ] && [ ! -s "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ]; then
  echo "$0: no token for Ray: set RAY_AUTH_TOKEN_PATH to a file of at least 32 random characters, the same on every" \
    "node (openssl rand -hex 32 >ray.token; chmod 600 ray.token)" >&2
  exit 2
fi
# What is started below may change its folder.
case "${RAY_AUTH_TOKEN_PATH:-/}" in
/*) ;;
*) export RAY_AUTH_TOKEN_PATH="$PWD/$RAY_AUTH_TOKEN_PATH" ;;
esac

export RAY_USAGE_STATS_ENABLED="${RAY_USAGE_STATS_ENABLED:-0}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# qherd takes up to 25 s to flush and to write a checkpoint; `ray job stop` would kill it after 3 s.
export RAY_JOB_STOP_WAIT_TIME_S="${RAY_JOB_STOP_WAIT_TIME_S:-40}"
# A node that is cut off counts as lost after about 20 s, so that its actors go elsewhere; Ray's own values: 65 s.
export RAY_health_check_period_ms="${RAY_health_check_period_ms:-3000}"
export RAY_health_check_timeout_ms="${RAY_health_check_timeout_ms:-3000}"
export RAY_health_check_failure_threshold="${RAY_health_check_failure_threshold:-4}"

OBJECT_STORE_BYTES="${OBJECT_STORE_BYTES:-268435456}"
# In containers /dev/shm has to be larger than that (shm_size), or Ray goes to a disk.

# Ray's own default, 6379, is Redis'.
RAY_PORT="${RAY_PORT:-6380}"

# The address by which a peer reaches this node: what the kernel would send from. [::1] is ::1.
address_towards() {
  python3 -c 'import socket, sys
family, kind, _, _, there = socket.getaddrinfo(sys.argv[1].strip("[]"), 9, type=socket.SOCK_DGRAM)[0]
with socket.socket(family, kind) as probe:
    probe.connect(there)
    print(probe.getsockname()[0])' "$1"
}

# Wait until host $1 takes connections on port $2, for at most $3 seconds.
await_port() {
  python3 -c 'import socket, sys, time
host, port, end = sys.argv[1].strip("[]"), int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
while True:
    try:
        socket.create_connection((host, port), timeout=3).close()
        break
    except OSError as error:
        if time.monotonic() > end:
            sys.exit(f"no Ray head answered at {host}:{port} for {sys.argv[3]} s: {error}")
        time.sleep(0.5)' "$@"
}
