"""docker-compose.yml, Dockerfile, KubeRay, Slurm and Ray's YAML: schemas, linters, and what has to fit together."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import contained
import exposure
import kustomize
import pytest
import ray
import sabotage
import yaml
from cli_runs import ROOT
from compose import load, order
from contained import STOP_S

from deploy.config.models import RunConfig, option_paths
from deploy.server.credentials import write_secrets
from deploy.server.embedded import CLIENTS_SHARE

BIN = Path(sys.executable).parent
KUBERAY = ROOT / "deploy" / "kuberay"
OVERLAYS = ["base", *(f"overlays/{path.name}" for path in sorted((KUBERAY / "overlays").iterdir()))]
SCRIPTS = sorted((ROOT / "deploy" / "ray").glob("*.sh"))
SBATCH = ROOT / "deploy" / "slurm" / "qherd.sbatch"


def tool(*command: str | Path, **environ: str) -> str:
    """Run a tool that has to find nothing wrong; what it printed."""
    env = {**os.environ, "NO_COLOR": "1", **environ}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=60, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def on_path(program: str) -> str:
    """Where a Debian program is; the test is skipped where it is not, but not in CI."""
    if found := shutil.which(program):
        return found
    if os.environ.get("CI"):
        pytest.fail(f"no {program} on PATH: see .ci/run", pytrace=False)
    pytest.skip(f"no {program} on PATH: apt-get install {program}")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load({})


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


def test_compose_fits_its_schema_and_the_linter() -> None:
    tool(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "docker-compose.yml")
    tool(BIN / "compose-lint", "check", "--fail-on", "high", ROOT / "docker-compose.yml")


def test_all_that_compose_refers_to_is_there(compose: dict[str, Any], tmp_path: Path) -> None:
    services = compose["services"]
    assert order(services).index("learner") > order(services).index("worker") > order(services).index("head")
    write_secrets(tmp_path / "s", "valkey:6379", "lander")
    roles = {path.name for path in (tmp_path / "s").iterdir()}
    for name, service in services.items():
        for other, wanted in service.get("depends_on", {}).items():
            assert other in services, (name, other)
            assert ("healthcheck" in services[other]) == (wanted["condition"] == "service_healthy"), (name, other)
            # what always starts cannot wait for what a profile leaves out
            chosen_together = set(services[other].get("profiles", [])) <= set(service.get("profiles", []))
            assert chosen_together or not wanted.get("required", True), (name, other)
        for network in service.get("networks", []):
            assert network in compose["networks"], (name, network)
        assert not ("networks" in service and "network_mode" in service), name
        mode = service.get("network_mode", "none")
        assert mode == "none" or mode.removeprefix("service:") in services, (name, mode)
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert (ROOT / volume["source"]).exists(), (name, volume)
            else:
                assert volume["source"] in compose["volumes"], (name, volume)
            if volume["source"] == "secrets" and name != "secrets":
                assert volume["volume"]["subpath"] in roles, (name, volume)
                assert volume["read_only"], name


def test_each_service_sees_only_the_files_that_it_names(services: dict[str, Any], tmp_path: Path) -> None:
    """Whatever path below /run/secrets a service is given is a file of the role that it mounts, and none is unused."""
    write_secrets(tmp_path / "s", "valkey:6379", "lander")
    for name, service in services.items():
        mounted = [v["volume"]["subpath"] for v in service.get("volumes", []) if v.get("volume", {}).get("subpath")]
        named = set(re.findall(r"/run/secrets/(\w[\w.]*)", json.dumps(service)))
        there = {path.name for role in mounted for path in (tmp_path / "s" / role).iterdir()}
        assert named <= there, (name, named, there)
        if service["image"].startswith("qherd") and mounted:
            there -= {"ray_token"}  # the image's RAY_AUTH_TOKEN_PATH
        assert there == named, (name, there - named)


def test_every_service_is_contained_and_can_fail_its_check(compose: dict[str, Any]) -> None:
    assert list(contained.findings(compose)) == []


def test_every_damage_to_a_service_is_found(compose: dict[str, Any]) -> None:
    """Some hundred, one at a time: user, rights, limits, mounts, networks, order, checks and ends of each service."""
    missed, tried = [], 0
    for name, key, path, value in sabotage.all_damages():
        tried += 1
        found = list(contained.findings(sabotage.damaged(compose, path, value)))
        if not any(each.startswith(f"{name}: {key}" if key else name) for each in found):
            missed.append((path, value, found))
    assert missed == []
    assert tried > 40 * len(compose["services"])


def test_who_is_not_root_can_write_its_volumes(services: dict[str, Any]) -> None:
    """A new volume takes its owner from the image's folder at that path, and is root's where the image has none."""
    made = re.search(r"install -d -o 10001 -g 10001 (.+?) *\\?$", (ROOT / "deploy/Dockerfile").read_text(), re.M)
    assert made is not None
    owned = {"qherd": ("10001", made[1].split()), "prom/prometheus": ("65534", ["/prometheus"])}
    for name, service in services.items():
        user, image = service["user"].partition(":")[0], service["image"].partition(":")[0]
        for volume in service.get("volumes", []):
            if volume["type"] == "volume" and not volume.get("read_only"):
                owner, folders = owned[image]
                assert (user, volume["target"] in folders) == (owner, True), (name, volume)
        for name_, value in (service.get("environment") or {}).items():
            if name_.startswith("GF_PATHS_"):  # its start script makes one level of folders below the tmpfs
                assert value == "/tmp" or Path(value).parent == Path("/tmp"), (name_, value)


def test_the_operator_reaches_the_dashboard_and_other_ray_pods_do_not(
    manifests: dict[str, list[dict[str, Any]]],
) -> None:
    """KubeRay's labels: of its operator, by Helm and by kustomize, and of every pod that it makes."""
    operators = [
        {"app.kubernetes.io/name": "kuberay-operator", "app.kubernetes.io/component": "kuberay-operator"},
        {"app.kubernetes.io/name": "kuberay", "app.kubernetes.io/component": "kuberay-operator"},
    ]
    made = {"app.kubernetes.io/name": "kuberay", "app.kubernetes.io/created-by": "kuberay-operator"}
    (policy,) = (each for each in manifests["base"] if each["metadata"]["name"] == "qherd-ray")
    (chosen,) = (
        peer["podSelector"]["matchLabels"]
        for rule in policy["spec"]["ingress"]
        for peer in rule["from"]
        if "namespaceSelector" in peer
    )
    assert all(chosen.items() <= labels.items() for labels in operators)
    assert not chosen.items() <= made.items()


def test_variables_have_defaults_and_are_explained() -> None:
    text, explained = (ROOT / "docker-compose.yml").read_text(), (ROOT / ".env").read_text()
    for name, rest in re.findall(r"\$\{(\w+)([^}]*)\}", text):
        assert rest.startswith((":-", ":?")), name
        assert not name.startswith("QHERD_"), f"{name}: qherd refuses what is none of its options"
        if not name.endswith("IMAGE"):
            assert re.search(rf"^#? ?{name}=", explained, re.M), f"{name} is not in .env"
    known = {"QHERD_" + path.upper().replace(".", "_") for path in option_paths(RunConfig)}
    for name in re.findall(r"^ +(QHERD_\w+):", text, re.M):
        assert name.removesuffix("_FILE") in known, name


def test_a_larger_herd_is_one_variable(compose: dict[str, Any]) -> None:
    larger = load({"ACTORS": "8", "WORKER_CPUS": "4", "RUN": "big"})["services"]
    assert "8" in larger["learner"]["command"]
    assert "--num-cpus=4" in larger["worker"]["command"]
    assert larger["worker"]["cpus"] == "4"
    assert "big" in larger["secrets"]["command"]
    assert compose["services"]["worker"]["scale"] == 2


def test_nothing_is_left_open(services: dict[str, Any], manifests: dict[str, list[dict[str, Any]]]) -> None:
    assert list(exposure.in_compose(services)) == []
    assert list(exposure.in_dockerfile((ROOT / "deploy" / "Dockerfile").read_text())) == []
    for overlay, found in manifests.items():
        assert list(exposure.in_manifests(found)) == [], overlay


def test_every_launchers_server_bounds_what_clients_may_hold(
    services: dict[str, Any], manifests: dict[str, list[dict[str, Any]]]
) -> None:
    """Alike, as the embedded server does by the run's own sizes: requests that are not whole would fill it else."""
    (deployment,) = [each for each in manifests["base"] if each["kind"] == "Deployment"]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    commands = [" ".join(services["valkey"]["command"]), " ".join(container["args"])]
    commands += [(ROOT / "deploy" / path).read_text() for path in ("ray/server.sh", "slurm/qherd.sbatch")]
    bounds = {"proto-max-bulk-len": "64mb", "client-query-buffer-limit": "65mb", "maxmemory-clients": CLIENTS_SHARE}
    for command in commands:
        assert dict(re.findall(rf"--({'|'.join(bounds)}) (\S+)", command)) == bounds, command
        assert "--maxmemory-policy noeviction" in command


def test_a_published_port_without_a_password_is_found(
    services: dict[str, Any], manifests: dict[str, list[dict[str, Any]]]
) -> None:
    """Each guard, taken away, is missed."""

    def findings(service: str, **change: Any) -> list[str]:
        return list(exposure.in_compose(services | {service: services[service] | change}))

    assert "beyond loopback" in findings("grafana", ports=["3000:3000"])[0]
    assert "without a secret" in findings("grafana", environment={})[0]
    assert "without a secret" in findings("valkey", command=["valkey-server"])[0]
    assert "beyond loopback" in findings("valkey", ports=["6379:6379"])[0]
    assert "host's network" in findings("head", network_mode="host")[0]
    assert "nothing is known" in findings("head", image="other/thing:1", ports=["127.0.0.1:1:1"])[0]

    def changed(kind: str, path: str, value: Any) -> list[str]:
        found = copy.deepcopy(manifests["base"])
        for each in found:
            if each["kind"] == kind:
                kustomize.apply(each, {"op": "add", "path": path, "value": value})
        return list(exposure.in_manifests(found))

    assert "LoadBalancer" in changed("Service", "/spec/type", "LoadBalancer")[0]
    assert "no token" in changed("RayJob", "/spec/rayClusterSpec/authOptions", None)[0]
    assert "publishes" in changed("RayJob", "/spec/rayClusterSpec/headGroupSpec/serviceType", "NodePort")[0]
    assert "without a secret" in changed("Deployment", "/spec/template/spec/containers/0/args", [])[0]
    closed = [each for each in manifests["base"] if each["kind"] != "NetworkPolicy"]
    assert list(exposure.in_manifests(closed)) == ["no network policy"]

    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    assert list(exposure.in_dockerfile(dockerfile + "\nEXPOSE 6379\n"))
    assert list(exposure.in_dockerfile(dockerfile.replace("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled")))
    assert list(exposure.in_dockerfile(dockerfile + "\nUSER root\n"))


def test_the_dockerfile_passes_its_linter_and_builds_from_files_that_are_there() -> None:
    tool(BIN / "hadolint", ROOT / "deploy" / "Dockerfile")
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M):
        for source in line.split():
            assert (ROOT / source).exists(), source
            assert "!" + source.split("/")[0] in ignored, f"{source} is not in the build's context"
    assert re.findall(r" AS (\w+)$", text, re.M)[-2:] == ["cuda", "cpu"], "the default target is cpu"
    ships = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert {ships["gpu"]["build"]["target"], ships["head"]["build"]["target"]} == {"cuda", "cpu"}


def test_the_images_packages_are_there_once(tmp_path: Path) -> None:
    """The Python image has a setuptools, the build stage another one, and COPY merges the two folders: what the stage
    ``base`` removes is removed, what is copied is copied. The build itself ends with pip check."""
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    version = re.search(r"^ARG PYTHON=(\d+\.\d+)", text, re.M)
    assert version is not None
    packages = tmp_path / "usr/local/lib" / f"python{version[1]}" / "site-packages"

    def install(*names: str) -> None:
        for name, number in (each.split("==") for each in names):
            folder = packages / f"{name}-{number}.dist-info"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")

    install("pip==24.0", "setuptools==65.5.1", "wheel==0.45.1")
    base = text.partition(" AS base\n")[2].partition("\nFROM ")[0]
    for path in re.findall(r"rm -rf (/usr/local\S*)", base):
        shutil.rmtree(tmp_path / path.lstrip("/"))
    install("pip==24.0", "setuptools==80.9.0", "wheel==0.45.1", "qherd==0.1.0")  # the build stage's, copied over it
    found = sorted(f"{each.name}=={each.version}" for each in importlib.metadata.distributions(path=[str(packages)]))
    assert found == ["pip==24.0", "qherd==0.1.0", "setuptools==80.9.0", "wheel==0.45.1"]
    for target in ("cuda", "cpu"):
        stage = text.partition(f"FROM base AS {target}\n")[2].partition("\nFROM ")[0]
        copied, _, checked = stage.partition("/usr/local /usr/local\n")
        assert f"COPY --from=build-{target}" in copied
        assert checked.startswith('RUN ["python3", "-m", "pip", "check"]'), target


def test_scripts_pass_their_linter() -> None:
    tool(on_path("shellcheck"), "--external-sources", "--source-path", ROOT / "deploy" / "ray", *SCRIPTS, SBATCH)
    assert all(os.access(path, os.X_OK) for path in (*SCRIPTS, SBATCH) if path.name != "env.sh")


def test_every_launcher_asks_for_a_token_and_gives_time_to_end() -> None:
    for path in (ROOT / "deploy/ray/env.sh", ROOT / "deploy/ray/cluster.yaml", SBATCH):
        assert "RAY_AUTH_MODE=token" in path.read_text(), path
        assert int(re.search(r"RAY_JOB_STOP_WAIT_TIME_S[=:-]+(\d+)", path.read_text())[1]) > STOP_S, path  # type: ignore[index]


@pytest.mark.parametrize("script", ["head.sh", "worker.sh", "run.sh"])
def test_a_node_without_a_token_does_not_start(script: str, tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    command = [str(ROOT / "deploy" / "ray" / script), "127.0.0.1:1", "true"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, "no token for Ray" in done.stderr) == (2, True), done


def in_env_sh(script: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """What a shell prints that has sourced deploy/ray/env.sh in ``folder``."""
    env = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(folder), "RAY_AUTH_TOKEN_PATH": "ray.token", **environ}
    command = ["sh", "-euc", f". {ROOT}/deploy/ray/env.sh; {script}"]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=20)


def test_scripts_take_a_relative_token_and_addresses_of_both_kinds(tmp_path: Path) -> None:
    """What they start changes its folder: the token's path is made absolute. Addresses are 127.0.0.1 and [::1]."""
    (tmp_path / "ray.token").write_text("t" * 64)
    assert in_env_sh('echo "$RAY_AUTH_TOKEN_PATH"', tmp_path).stdout == f"{tmp_path}/ray.token\n"
    for host, shown, own in (("127.0.0.1", "127.0.0.1", "127.0.0.1"), ("[::1]", "::1", "::1")):
        assert in_env_sh(f"address_towards {host}", tmp_path).stdout == f"{own}\n"
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((shown, 0), family=family) as server:
            port = server.getsockname()[1]
            done = in_env_sh(f"await_port {host} {port} 5", tmp_path)
            assert (done.returncode, done.stderr) == (0, ""), host
        done = in_env_sh(f"await_port {host} {port} 0", tmp_path)
        assert (done.returncode, f"no Ray head answered at {shown}:{port}" in done.stderr) == (1, True), done


def test_a_certificate_is_for_addresses_of_both_kinds(tmp_path: Path) -> None:
    script = ROOT / "deploy" / "ray" / "certificates.sh"
    tool(script, tmp_path / "c", "valkey", "192.0.2.7", "fd00::7")
    shown = tool(on_path("openssl"), "x509", "-in", tmp_path / "c" / "tls.crt", "-noout", "-ext", "subjectAltName")
    assert "DNS:valkey, IP Address:192.0.2.7, IP Address:FD00:0:0:0:0:0:0:7" in shown


def test_the_slurm_file_says_what_it_would_do_and_does_nothing(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "DRY_RUN": "1", "RUN": "r", "SLURM_JOB_NUM_NODES": "11", "SHARED": str(tmp_path)}
    done = subprocess.run(
        [SBATCH, "CartPole-v1", "--budget.seconds", "60"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "dry run: nothing is started" in done.stdout
    assert "qherd train CartPole-v1 --mode cluster" in done.stdout
    assert "--actors.count 42" in done.stdout, "11 nodes of 4 CPUs, two of them for learner and server"
    assert "--min-nodes 11" in done.stdout
    assert list(tmp_path.iterdir()) == []
    relative = subprocess.run(
        [SBATCH], env=env | {"SHARED": "."}, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=20
    )
    assert f"--runs-dir {tmp_path}/runs" in relative.stdout, "nodes and the server are in other folders"
    assert f"--aclfile {tmp_path}/.qherd-job-" in relative.stdout
    without = subprocess.run(
        [SBATCH], env={"PATH": env["PATH"]}, capture_output=True, text=True, check=False, timeout=20
    )
    assert (without.returncode, "call it by sbatch" in without.stderr) == (2, True)


def test_the_slurm_file_signals_the_driver_in_time() -> None:
    directive = re.search(r"^#SBATCH --signal=B:TERM@(\d+)$", SBATCH.read_text(), re.M)
    assert directive is not None
    assert int(directive[1]) > 2 * STOP_S


def test_rays_cluster_yaml_fits_rays_schema() -> None:
    schema = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    tool(BIN / "check-jsonschema", "--schemafile", schema, ROOT / "deploy" / "ray" / "cluster.yaml")


@pytest.fixture(scope="module")
def kuberay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with secrets, as a user makes them."""
    folder = tmp_path_factory.mktemp("kuberay") / "kuberay"
    shutil.copytree(KUBERAY, folder)
    shutil.rmtree(folder / "base" / "secrets", ignore_errors=True)
    write_secrets(folder / "base" / "secrets", "valkey:6379", "lander")
    return folder


@pytest.fixture(scope="module")
def manifests(kuberay: Path) -> dict[str, list[dict[str, Any]]]:
    return {overlay: kustomize.build(kuberay / overlay) for overlay in OVERLAYS}


KNOWN_KINDS = {"Service", "Deployment", "PersistentVolumeClaim", "NetworkPolicy", "Secret"}
RAY_JOB = {
    "entrypoint": str,
    "backoffLimit": int,
    "submissionMode": str,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "submitterPodTemplate": dict,
    "rayClusterSpec": dict,
}
"""KubeRay's own fields, by ray-operator/apis/ray/v1/rayjob_types.go; authOptions since 1.5.1."""
RAY_CLUSTER = {"rayVersion": str, "authOptions": dict, "headGroupSpec": dict, "workerGroupSpecs": list}
GROUP = {
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "rayStartParams": dict,
    "template": dict,
}
HEAD = {"serviceType": str, "rayStartParams": dict, "template": dict}


def holds(values: dict[str, Any], fields: Mapping[str, type]) -> None:
    assert values.keys() <= fields.keys(), values.keys() - fields.keys()
    assert {name: type(value) for name, value in values.items()}.items() <= fields.items()


def test_manifests_fit_their_schemas(manifests: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    """Kubernetes' kinds, and KubeRay's pods as pods, by kubernetes-validate; KubeRay's own fields by hand."""
    files = []
    for overlay, found in manifests.items():
        whole = [each for each in found if each["kind"] in KNOWN_KINDS]
        (job,) = (each for each in found if each["kind"] == "RayJob")
        for index, pod in enumerate(exposure.pods(job)):
            whole.append(
                {"apiVersion": "v1", "kind": "Pod", **pod, "metadata": {"name": f"p{index}", **pod["metadata"]}}
            )
        others = {each["kind"] for each in found} - KNOWN_KINDS
        assert others == {"RayJob", "PodMonitor"}
        files.append(tmp_path / f"{overlay.replace('/', '-')}.yaml")
        files[-1].write_text(yaml.safe_dump_all(whole))
        holds(job["spec"], RAY_JOB)
        cluster = job["spec"]["rayClusterSpec"]
        holds(cluster, RAY_CLUSTER)
        holds(cluster["headGroupSpec"], HEAD)
        for group in cluster["workerGroupSpecs"]:
            holds(group, GROUP)
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        for params in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert all(isinstance(value, str) for value in params["rayStartParams"].values()), "KubeRay wants texts"
    tool(BIN / "kubernetes-validate", "--strict", "--quiet", *files)


def test_there_is_room_for_every_actor(manifests: dict[str, list[dict[str, Any]]]) -> None:
    """CPUs of the workers, one seat, and requests that agree with what Ray is told."""
    for overlay, found in manifests.items():
        (job,) = (each for each in found if each["kind"] == "RayJob")
        words = job["spec"]["entrypoint"].split()
        options = dict(zip(words[2::2], words[3::2], strict=False))
        cluster = job["spec"]["rayClusterSpec"]
        groups = cluster["workerGroupSpecs"]
        cpus = sum(group["replicas"] * int(group["rayStartParams"]["num-cpus"]) for group in groups)
        assert int(words[words.index("--actors.count") + 1]) <= cpus, (overlay, options)
        for group in groups:
            asked = group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]
            assert group["rayStartParams"]["num-cpus"] in (asked, "0"), overlay
        seats = [
            g
            for g in (cluster["headGroupSpec"], *groups)
            if "qherd_learner" in g["rayStartParams"].get("resources", "")
        ]
        assert len(seats) == 1, overlay
        labels = seats[0]["template"]["metadata"]["labels"]
        assert labels["qherd/part"] == "learner", "Prometheus asks the pod with the learner"
        mounts = {each["mountPath"] for each in seats[0]["template"]["spec"]["containers"][0]["volumeMounts"]}
        assert "/srv/runs" in mounts, "checkpoints have to be where the learner is"
        assert json.loads(json.loads(seats[0]["rayStartParams"]["resources"])) == {"qherd_learner": 1}


def test_pods_end_in_time_and_workers_have_no_secret(manifests: dict[str, list[dict[str, Any]]]) -> None:
    script = (ROOT / "deploy" / "ray" / "leave.sh").read_text()
    leave_s, stop_s = (int(found) for found in re.findall(r"(?:LEAVE_S:-|--grace-period )(\d+)", script))
    assert leave_s > STOP_S
    for overlay, found in manifests.items():
        (job,) = (each for each in found if each["kind"] == "RayJob")
        submitter, head, *workers = exposure.pods(job)
        assert submitter["spec"]["restartPolicy"] == "Never"
        for pod in (head, *workers):
            command = pod["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert command == ["/opt/qherd/deploy/ray/leave.sh"], overlay
            assert pod["spec"]["terminationGracePeriodSeconds"] > leave_s + stop_s, overlay
        for pod in workers:
            assert not any("secret" in volume for volume in pod["spec"]["volumes"]), overlay


def test_kubectl_makes_the_same_of_it(kuberay: Path, manifests: dict[str, list[dict[str, Any]]]) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None or " v1.2" in (said := tool(kubectl, "version", "--client")) or ":v0" in said:
        pytest.skip("no kubectl that knows patches")
    for overlay, mine in manifests.items():
        theirs = list(yaml.safe_load_all(tool(kubectl, "kustomize", kuberay / overlay)))

        def named(found: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
            for each in found:
                if "data" in each:  # base64 in lines, or in one
                    each["data"] = {name: text.replace("\n", "") for name, text in each["data"].items()}
            return {(each["kind"], each["metadata"]["name"]): each for each in found}

        assert named(mine) == named(theirs), overlay
