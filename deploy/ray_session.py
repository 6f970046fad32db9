"""The modes local and cluster: learner, actors and evaluator as Ray actors, on an embedded server or existing ones."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from actors.evaluator import Verdict
from deploy import __version__
from deploy.config import ConfigError, RunConfig
from deploy.plan import backstop_chunks, chunk_rows, plan
from deploy.run_dir import RunDirectory, env_of
from deploy.session import Progress, RunFailedError, Say, replay_of
from deploy.valkey import EmbeddedServer, PrivateDir
from replay.chunk import Schema
from replay.identity import Identity
from replay.log import LogError
from replay.redis_log import RedisLog
from replay.sharded_log import ShardedLog, shard_of

SLICE_S = 0.25
"""Seconds of one call of the learner."""
READY_S = 120.0
"""Seconds after which a learner that has not answered counts as hung."""
LAST_ID_TIMEOUT_S = 2.0
"""How long the driver waits for a server before it restarts an actor: as long as the others have calls in flight."""


class RaySession:
    """``local``: Ray and an embedded server on this machine; ``cluster``: those that are there."""

    def __init__(self, config: RunConfig, directory: RunDirectory, schema: Schema, say: Say) -> None:
        self._config, self._directory, self._schema, self._say = config, directory, schema, say
        self._cleanup = contextlib.ExitStack()
        self._figures: dict[str, float] = {}
        self._driver_figures: dict[str, float] = {
            "actors_alive": 0,
            "actor_restarts": 0,
            "checkpoint_interval_seconds": config.checkpoint.every_s,
        }
        self._server: EmbeddedServer | None = None
        self._servers_down = 0
        try:
            self._start()
        except BaseException:
            self._cleanup.close()
            raise

    def _start(self) -> None:
        config = self._config
        urls = self._start_server()
        self._claim(urls["learner"])
        self._say(f"starting Ray ({'on this machine' if config.mode == 'local' else config.ray.address})")
        with ThreadPoolExecutor(1) as meanwhile:
            opened = meanwhile.submit(self._directory.open_files)
            _start_ray(config, self._cleanup)
        opened.result()

        from actors.supervisor import Restarts, Screening, Silence, Supervisor

        self._silence = Silence(config.actors.silence_s)
        self._server_restarts = Restarts("the replay server", config.actors.restarts)
        identity = Identity.here()
        self._say("starting the learner, the evaluator and the actors")
        self._learner = self._start_learner(identity, urls["learner"])
        self._metrics_address = self._learner.metrics_address.remote()
        self._slices: deque[Any] = deque()
        self._ask_slice()
        self._asked_s = time.monotonic()
        self._supervisor = Supervisor(
            self._actor_starter(identity, urls), config.actors.count, config.actors.restarts, self._say
        )
        self._screening = Screening(
            self._evaluator_starter(identity),
            self._learner.candidate.remote,
            config.eval.cpu_share,
            config.actors.restarts,
            self._say,
        )

    def _start_server(self) -> dict[str, tuple[str, ...]]:
        """URLs by role, of the embedded server or of the cluster's."""
        config = self._config
        if config.mode == "cluster":
            return {"learner": config.redis.servers, "actor": config.redis.servers}
        planned = plan(config, self._schema).server
        self._server = self._cleanup.enter_context(EmbeddedServer(self._directory.run, planned))
        self._cleanup.enter_context(self._directory.showing_replay_url(self._server.url("reader")))
        return {role: (self._server.url(role),) for role in ("learner", "actor")}

    def _claim(self, urls: Sequence[str]) -> None:
        """Claim the run's name on every server, in their order, so that of two runs the first server's wins."""
        for url in urls:
            with contextlib.closing(RedisLog(url, self._directory.run)) as log:
                if not log.claim(self._directory.nonce):
                    raise ConfigError(
                        f"another run {self._directory.run!r} has its keys on {log.url}: choose another --run"
                    )

    def _start_learner(self, identity: Identity, urls: Sequence[str]) -> Any:
        from learner.worker import LearnerWorker

        config = self._config
        local = config.mode == "local"
        return LearnerWorker.options(  # type: ignore[attr-defined]
            num_cpus=0 if local else 1, num_gpus=_gpus(config)
        ).remote(
            identity,
            urls,
            self._directory.run,
            self._schema,
            replay_of(config, self._directory),
            config.learner,
            fence=self._directory.next_fence(),
            seed=config.seed,
            slots=config.actors.count,
            chunk_rows=chunk_rows(config),
            quarantine=self._directory.quarantine if local else None,
            metrics_address=None if config.metrics.port is None else (config.metrics.host, config.metrics.port),
            version=__version__,
        )

    def _actor_starter(self, identity: Identity, urls: Mapping[str, Sequence[str]]) -> Callable[[int], Any]:
        from actors.rollout import Place
        from actors.worker import ActorWorker

        config = self._config
        run, env, dueling = self._directory.run, env_of(config), config.learner.network.dueling
        logs = [RedisLog(url, run, timeout_s=LAST_ID_TIMEOUT_S) for url in urls["learner"]]
        log = self._cleanup.enter_context(contextlib.closing(ShardedLog(logs)))

        def start(slot: int) -> Any:
            incarnation = self._directory.next_incarnation(slot, log.last_id(slot).incarnation)
            place = Place(run, config.seed, slot, config.actors.count, incarnation)
            url = urls["actor"][shard_of(slot, len(urls["actor"]))]
            return ActorWorker.options(num_cpus=config.actors.cpus).remote(  # type: ignore[attr-defined]
                identity, url, place, env, config.actors, dueling, backstop_chunks(config)
            )

        return start

    def _evaluator_starter(self, identity: Identity) -> Callable[[int], Any]:
        from actors.worker import EvaluatorWorker

        config = self._config
        env, dueling = env_of(config), config.learner.network.dueling
        return lambda restart: EvaluatorWorker.options(num_cpus=0).remote(  # type: ignore[attr-defined]
            identity, env, config.eval, dueling, config.seed, restart
        )

    def advance(self) -> Progress:
        import ray

        from actors.supervisor import CrashLoopError, cause

        done, _ = ray.wait([self._slices[0]], timeout=SLICE_S)
        if done:
            try:
                self._figures, self._refused, self._rows_lost = ray.get(self._slices.popleft())
            except ray.exceptions.RayError as error:
                raise RunFailedError(f"the learner failed: {cause(error)}", str(error)) from None
            while len(self._slices) < 2:  # so that the learner never waits for the driver
                self._ask_slice()
            self._asked_s = time.monotonic()
            self._register_metrics()
        elif time.monotonic() - self._asked_s > READY_S:
            raise RunFailedError(f"the learner has not answered for {READY_S:.0f} s")
        try:
            self._tend_server()
            self._supervisor.tick()
            self._check_silence()
            result = self._screening.tick(learning=self._figures.get("updates", 0) > 0)
        except CrashLoopError as error:
            raise RunFailedError(str(error), error.details) from None
        self._tell_servers_down()
        verdict, policy = (result[0], ray.get(result[1])) if result else (None, None)
        if verdict is not None:
            self._driver_figures["greedy_return"] = verdict.episodes.mean
        self._driver_figures["actors_alive"] = self._supervisor.alive
        self._driver_figures["actor_restarts"] = self._supervisor.restarts + self._screening.restarts
        return self._progress(verdict, policy)

    def _check_silence(self) -> None:
        if self._silence.too_long(self._figures):
            raise RunFailedError(
                f"no env step has come in for {self._config.actors.silence_s:g} s (actors.silence_s), though the gate "
                f"is open: {self._supervisor.told()}"
            )

    def _tend_server(self) -> None:
        """Bring the embedded server back, empty, if it died: the mirror has the rows, the learner publishes again."""
        if self._server is None or self._server.alive():
            return
        self._server_restarts.died(RuntimeError("its process ended"))
        self._say("the replay server died; it restarts, empty")
        self._server.start()
        self._claim([self._server.url("learner")])

    def _register_metrics(self) -> None:
        """Once per learner, when it works: write down where its /metrics is."""
        import ray

        if self._metrics_address is not None:
            address, self._metrics_address = ray.get(self._metrics_address), None
            if address is not None:
                self._directory.show_metrics_address(*address)

    def _tell_servers_down(self) -> None:
        """Say when servers stop or begin to answer the learner."""
        down = int(self._figures.get("servers_down", 0))
        if down != self._servers_down:
            self._servers_down = down
            self._say(f"replay servers that do not answer: {down}; their actors wait" if down else "all servers answer")

    def _ask_slice(self) -> None:
        self._slices.append(self._learner.train.remote(SLICE_S, self._driver_figures))

    def _progress(self, verdict: Verdict | None, policy: bytes | None) -> Progress:
        if not self._figures:
            return Progress(dict(self._driver_figures), {}, {}, verdict, policy)
        return Progress(self._figures | self._driver_figures, self._refused, self._rows_lost, verdict, policy)

    def stop(self, deadline_s: float) -> Progress | None:
        import ray

        try:
            with contextlib.suppress(ray.exceptions.RayError, LogError):
                ray.get(self._learner.shut_gate.remote(), timeout=deadline_s / 4)
                self._supervisor.stop(deadline_s / 2)
                self._screening.stop()
                self._figures, self._refused, self._rows_lost = ray.get(
                    self._learner.drain.remote(), timeout=deadline_s / 4
                )
            return self._progress(None, None)
        finally:
            self._cleanup.close()


def _start_ray(config: RunConfig, cleanup: contextlib.ExitStack) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RAY_worker_niceness", "0")
    if config.mode == "local":
        # Ray reads this when it is imported: "0" has every part of it listen on loopback only.
        if "ray" in sys.modules:
            raise RunFailedError("ray was imported before the run; its loopback and token settings are read at import")
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    import ray

    home = PrivateDir()
    cleanup.callback(home.remove)
    cleanup.callback(ray.shutdown)
    folder = home.path
    (folder / "empty").mkdir()
    # Ray puts the driver's working directory first on the workers' sys.path: give it one without packages.
    with contextlib.chdir(folder / "empty"), _own_signal_handlers():
        if config.mode == "cluster":
            _join_cluster(str(config.ray.address))
        else:
            ray.init(
                include_dashboard=False,
                object_store_memory=256 << 20,
                log_to_driver=False,
                configure_logging=False,
                _temp_dir=str(folder),
                _node_ip_address="127.0.0.1",
            )


def _join_cluster(address: str) -> None:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"the Ray cluster at {address} cannot be used: {reason}; is the address right, and are RAY_AUTH_MODE and "
            "RAY_AUTH_TOKEN the cluster's?"
        ) from None


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep our handlers of SIGINT and SIGTERM where ray.init installs its own, which end the process by SIGABRT."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _gpus(config: RunConfig) -> float:
    """GPUs that the learner asks for: one where the cluster has any and the config does not say otherwise."""
    import ray

    wanted = config.learner.device
    if wanted.startswith("cuda"):
        return 1
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return 1 if wanted == "auto" and resources.get("GPU", 0) >= 1 else 0
