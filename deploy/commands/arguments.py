"""What each command of ``qherd`` takes. Field docs are the command line's help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import BaseModel, ConfigDict, Field

from actors.seeds import MOST, PLAYBACK
from deploy.config.models import RedisConfig, RunConfig


class Launch(BaseModel):
    """What comes before the options."""

    model_config = ConfigDict(frozen=True)

    preset: str | None = None
    """Start from these values: cartpole, lunarlander or tutorial. The default goes by the environment."""
    config: Path | None = None
    """A YAML file of options, over the preset."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run --run where there is one of that name already: for launchers that repeat their command."""


class Train(Launch):
    """Train a Q-network with actors, a replay server and a learner. ENV, if given, comes first: a Gymnasium
    environment, or module:EnvId for one of your own.

    Options by dotted name come on top of the environment variables (QHERD_LEARNER_LR=5e-4), these on top of --config,
    this on top of the preset.
    """

    options: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()


class Plan(BaseModel):
    """Say what a run will take and do, before it is started: memory of server, learner and actors, env steps and
    updates per second, samples per insert, bytes per second on the network, each with what it is made of. What is
    impossible is refused. ENV and the options are those of qherd train.

    The environment and the network are tried on this machine, for a second each, unless their rates are given.
    """

    preset: str | None = None
    """Start from these values: cartpole, lunarlander or tutorial. The default goes by the environment."""
    config: Path | None = None
    """A YAML file of options, over the preset."""
    env_steps_per_second: float | None = Field(None, gt=0)
    """Env steps per second of one actor, all its lanes together. The default is measured."""
    updates_per_second: float | None = Field(None, gt=0)
    """Updates per second that the learner can do. The default is measured, on this machine."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""
    options: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()


class Doctor(BaseModel):
    """Check what a run needs: versions, limits, the environment (spaces, dtype, autoreset mode, step rate), memory,
    ports, disk, cores, GPU, the server and its memory policy, /dev/shm, Ray and each of its nodes. Options are those of
    qherd train; --env.id names the environment. Exit code 1 where there is a problem.

    With RUN, a run's directory: say whether it is well, and name what holds it up (env, actor CPU, Redis, network,
    learner or limiter) from the waits that it measures, and what to change.
    """

    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""
    preset: str | None = None
    """Start from these values: cartpole, lunarlander or tutorial. The default goes by the environment."""
    config: Path | None = None
    """A YAML file of options, over the preset."""
    options: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()


class DoctorOfRun(BaseModel):
    """Say whether a run is well, and name what holds it up (env, actor CPU, Redis, network, learner or limiter) from
    the waits that it measures, and what to change.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


class Scale(BaseModel):
    """Have N actors in a run while it works, and wait until they are there. New ones join with the newest weights;
    those that leave send what they have in hand first; every lane moves to its place on the epsilon ladder of N. What
    the run could not hold is refused, and then nothing changes. qherd resume goes on with N.

    Exit code 1 where the actors had not all answered after two minutes: a cluster may have no room for them yet.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory."""
    actors: int = Field(ge=1)
    """How many actors the run shall have."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON, with the epsilon of every lane as its actor says it."""


class Resume(BaseModel):
    """Go on with a run from its newest checkpoint, with all that it has counted, learned and stored. Its directory
    comes first: qherd resume runs/NAME.

    Options by dotted name change what may change, such as --budget.env-steps or --learner.lr; what the run has learned
    and stored goes by the others, which stay as they were.
    """

    options: Annotated[RunConfig, tyro.conf.arg(name="")] = RunConfig()


class Moved(BaseModel):
    """What of a run's environment may be elsewhere than it was."""

    path: Path | None = None
    """The folder to find the environment's module in. The default is the run's own."""


class Eval(BaseModel):
    """Play a run's best policy greedily."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory."""
    env: Moved = Moved()
    episodes: int = Field(100, ge=1)
    """Greedy episodes to play."""
    seed: int = Field(PLAYBACK, ge=0, le=MOST)
    """Seed of the first episode; each further one has the next. The default is none that the run has played."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


class Record(BaseModel):
    """Write a video of a run's best policy."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory."""
    env: Moved = Moved()
    out: Path | None = None
    """The file to write, .mp4 or .gif. The default is best.mp4 in the run's directory."""
    seed: int = Field(PLAYBACK, ge=0, le=MOST)
    """Seed of the episode."""


class ReplayStats(BaseModel):
    """Print what a run's replay memory holds, per slot: rows and bytes stored, rows per second sent, the newest weights
    acted with, incarnation, and chunks refused by reason. It reads only, and takes a second.

    A run of mode local is given by its directory, while it runs. A run on a server of your own is given by its
    directory, its name, or the server's URL.
    """

    given: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|URL")]
    """A run's directory or name, or a server's URL (redis://, rediss://, unix://)."""
    run: str | None = None
    """With a URL: the run's name. A server's only run needs none."""
    redis: RedisConfig = RedisConfig()
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


class Clean(BaseModel):
    """Remove a run's keys from its Redis or Valkey server, after asking. Other runs' keys and the run's directory stay;
    a run that is alive is refused.

    Runs of mode local need none of it: their server ends with them.
    """

    given: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory or name. A directory's keys are removed only where they are that run's own."""
    redis: RedisConfig = RedisConfig()
    yes: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Do not ask."""


class Secrets(BaseModel):
    """Make the passwords, users and token of a cluster, once: a folder with a folder for each role. Where there is one
    already it is left as it is.

    server/users.acl is the server's aclfile and holds digests only.
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The folder to make."""
    server: str = "valkey:6379"
    """The server's host:port, as the nodes know it."""
    run: str | None = None
    """The only run that its users may touch. The default is any run."""
    tls: bool = False
    """URLs for TLS: rediss://."""
    ca: Path | None = None
    """With --tls: where the nodes find the certificate of your own authority."""


class Discovery(BaseModel):
    """Tell Prometheus which runs there are, and where their /metrics is: HTTP service discovery, until interrupted.

    It knows the runs of this machine's --runs-dir, or of a folder that several machines share. A run is on the list
    from its learner's start to its orderly end; it needs --metrics.port (0: a free one, so that several never meet).
    """

    runs_dir: tuple[Path, ...] = (Path("runs"),)
    """Where the folders of runs are; several may be given."""
    port: int = Field(9180, ge=0, le=65535)
    """The port to serve on; deploy/prometheus/prometheus.yml asks 9180."""
    host: str = "127.0.0.1"
    """The address to serve on."""
