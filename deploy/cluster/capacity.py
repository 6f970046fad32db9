"""What a run asks of its Ray cluster, held against what the cluster has: at the start, and while parts wait for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from deploy.cluster.placement import CapacityWatch, alive_nodes, check_capacity, resource_request, without_worker
from deploy.config.models import RunConfig


class Capacity:
    """The requests of a run with this configuration. Ray has to be there."""

    def __init__(self, config: RunConfig, notify: Callable[[str], None]) -> None:
        """Raises ConfigError where the cluster can never hold the run."""
        import ray

        self.request = resource_request(config, ray.cluster_resources())  # type: ignore[no-untyped-call]
        self.waits_for = check_capacity(self.request, alive_nodes(ray.nodes()), config.ray.autoscales)  # type: ignore[no-untyped-call]
        """What the cluster has to add first; empty where the run fits."""
        self._watch = CapacityWatch(self.request, notify)

    def short(self, learner: bool, actors: int = 0) -> bool:
        """Returns whether resources are what keeps the learner, if it is missing, and so many actors from starting."""
        import ray

        return self._watch.short(learner, actors, ray.available_resources, _queued)


def _queued() -> Counter[str]:
    """Returns how many of this run's Ray actors have no worker process yet, by their class. Ray has no public call for
    it that needs no dashboard."""
    import ray
    from ray._private.state import actors

    job_id = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    return without_worker(actors(job_id=job_id, actor_state_name="PENDING_CREATION").values())
