"""What answers at a server's address: whether it can hold a run, how big a value it takes, and what else it may be."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

import redis

from replay.chunk_log.protocol import UnusableServer

MIN_SERVER = 7
PROBE_S = 2.0
SMALLEST_BOUND_BYTES = 1 << 20
"""No server's proto-max-bulk-len can be set lower."""
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_TLS_ALERT = b"\x15"
_ZEROS = bytes(1 << 16)
OTHER_WORDS_BYTES = 1 << 10
"""As long as all of a request but its value may be."""


class Bounds(NamedTuple):
    """Bytes that a server takes at the most: of one value (proto-max-bulk-len), and of one request with all that is in
    it (client-query-buffer-limit)."""

    value: int = 512 << 20
    request: int = 1 << 30


def check_kind(where: str, info: Mapping[str, Any]) -> None:
    """Raises UnusableServer where a server with this INFO must not hold a run; ``where`` is its public URL."""
    mode = str(info.get("redis_mode", info.get("server_mode", "standalone")))
    if mode == "sentinel":
        raise UnusableServer(
            f"{where} is a Sentinel, which holds no data: give the URL of the server that it watches "
            "(SENTINEL GET-MASTER-ADDR-BY-NAME tells host and port)"
        )
    if mode == "cluster" or int(info.get("cluster_enabled", 0)):
        raise UnusableServer(
            f"{where} is a node of a Redis Cluster, which spreads keys over its nodes, and qherd writes several "
            "at once: give a server with cluster mode disabled (cluster-enabled no); for several, --redis.urls"
        )
    version = str(info.get("redis_version", "0"))
    if int(version.partition(".")[0]) < MIN_SERVER:
        raise UnusableServer(f"{where} runs version {version}; qherd needs Redis or Valkey {MIN_SERVER}.0 or newer")
    if info.get("role") == "slave":
        primary = f"{info.get('master_host')}:{info.get('master_port')}"
        raise UnusableServer(f"{where} is a replica, which is read-only: give the URL of its primary, {primary}")
    policy = info.get("maxmemory_policy", "not told")
    if policy != "noeviction":
        raise UnusableServer(
            f"{where} has maxmemory-policy {policy}: it would evict chunks and weights in silence; set it to "
            "noeviction (CONFIG SET maxmemory-policy noeviction; of a managed server, in the provider's parameters)"
        )


def bounds(client: Any) -> Bounds:
    """Returns the server's bounds; its defaults where this user may not ask, or the command is not there (managed
    servers)."""
    try:
        found = client.config_get("proto-max-bulk-len", "client-query-buffer-limit")
    except redis.ResponseError:
        return Bounds()
    known = Bounds()
    value, request = found.get("proto-max-bulk-len"), found.get("client-query-buffer-limit")
    return Bounds(int(value or known.value), int(request or known.request))


def refuses_length(client: Any, nbytes: int) -> str:
    """Returns the name of the bound by which the server refuses a value of this length for its length alone; empty
    where it takes one, or is down.

    A request is begun that announces it: a server that takes it waits for more, another one answers with an error or
    hangs up. Then as many zeros are sent: a server whose bound is that of whole requests hangs up. The request is a
    PING of two words, which every user may send and which is answered with an error.
    """
    pool = client.connection_pool
    try:
        connection = pool.get_connection()  # with the user's name and password
    except redis.RedisError:
        return ""
    try:
        announced = b"*3\r\n$4\r\nPING\r\n$%d\r\n%b\r\n$%d\r\n" % (OTHER_WORDS_BYTES, bytes(OTHER_WORDS_BYTES), nbytes)
        if _hangs_up(connection, [announced], PROBE_S / 4, "bulk length"):
            return "proto-max-bulk-len"
        whole, rest = divmod(nbytes, len(_ZEROS))
        zeros = [_ZEROS] * whole + [_ZEROS[:rest], b"\r\n"]
        return "client-query-buffer-limit" if _hangs_up(connection, zeros, PROBE_S) else ""
    finally:
        connection.disconnect()
        pool.release(connection)


def _hangs_up(connection: Any, pieces: list[bytes], seconds: float, refusal: str = "") -> bool:
    """Returns whether the server answers what is sent by hanging up, or with an error that has ``refusal`` in it."""
    try:
        connection.send_packed_command(pieces)
        connection.read_response(disconnect_on_error=False, timeout=seconds)
    except redis.TimeoutError:
        return False
    except redis.ResponseError as error:
        return bool(refusal) and refusal in str(error)
    except redis.ConnectionError:
        return True
    return False


def who_answers(pool: Any) -> str:
    """Returns what speaks on a TCP port that does not answer as a replay server does, with the remedy; empty where
    nothing is recognised."""
    place = pool.connection_kwargs
    if "host" not in place:
        return ""
    address = (str(place["host"]), int(place.get("port", 6379)))
    encrypted = issubclass(pool.connection_class, redis.SSLConnection)
    first, found = _first_bytes(address), ""
    if first is None:
        return ""
    if len(first) == 9 and first[3] == 4:  # a SETTINGS frame
        found = "this port answers as gRPC, as Ray's GCS does: start Ray with --port=6380, or give the server's port"
    elif first.startswith((b"HTTP/", b"<")):
        found = "this port answers as an HTTP server does: give the port of the Redis or Valkey server"
    elif first[:1] in (b"+", b"-"):
        found = "this port speaks no TLS: give redis:// in place of rediss://, or its TLS port" if encrypted else ""
    elif not encrypted and (first[:1] == _TLS_ALERT or _speaks_tls(address)):
        found = "this port speaks TLS: give rediss:// in place of redis:// (ssl_ca_certs=FILE names its authority)"
    return found


def _first_bytes(address: tuple[str, int]) -> bytes | None:
    """Returns what is answered to the begin of HTTP/2; empty where the other side hangs up, None where nothing
    comes."""
    try:
        with socket.create_connection(address, timeout=PROBE_S) as probe:
            probe.sendall(_HTTP2_PREFACE)
            return probe.recv(9)
    except ConnectionResetError:
        return b""
    except OSError:
        return None


def _speaks_tls(address: tuple[str, int]) -> bool:
    """Returns whether a handshake gets as far as a certificate; whose it is does not matter here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(address, timeout=PROBE_S) as probe, context.wrap_socket(probe) as encrypted:
            return encrypted.version() is not None
    except OSError:
        return False
