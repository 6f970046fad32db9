"""What `kubectl kustomize` makes of deploy/kuberay, as far as its files need it: resources, secretGenerator, namespace,
JSON patches. So the manifests are checked where there is no kubectl; where there is one, the two are compared."""

from __future__ import annotations

import base64
import copy
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]


def build(folder: Path) -> list[Manifest]:
    """All manifests of a base or an overlay."""
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = plan.keys() - {"apiVersion", "kind", "namespace", "resources", "secretGenerator", "patches"}
    assert not unknown, f"{folder}: this reader knows nothing of {unknown}"
    found: list[Manifest] = []
    for name in plan.get("resources", []):
        path = folder / name
        found += build(path) if path.is_dir() else [each for each in yaml.safe_load_all(path.read_text()) if each]
    found += [_secret(folder, each) for each in plan.get("secretGenerator", [])]
    for patch in plan.get("patches", []):
        changes = yaml.safe_load(patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text())
        targets = [each for each in found if _is(each, patch["target"])]
        assert targets, f"{folder}: a patch for {patch['target']}, which is not there"
        for target in targets:
            for change in changes:
                apply(target, change)
    if "namespace" in plan:
        for each in found:
            each["metadata"]["namespace"] = plan["namespace"]
    return copy.deepcopy(found)  # without YAML's shared anchors


def _is(manifest: Manifest, target: dict[str, str]) -> bool:
    return (manifest["kind"], manifest["metadata"]["name"]) == (target["kind"], target["name"])


def _secret(folder: Path, plan: dict[str, Any]) -> Manifest:
    assert plan["options"] == {"disableNameSuffixHash": True}
    data = {Path(name).name: base64.b64encode((folder / name).read_bytes()).decode() for name in plan["files"]}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": plan["name"]}, "type": "Opaque", "data": data}


def apply(document: Any, change: dict[str, Any]) -> None:
    """One operation of a JSON patch (RFC 6902): add, replace, remove."""
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in change["path"].split("/")[1:]]
    at = document
    for part in parents:
        at = at[int(part) if isinstance(at, list) else part]
    if isinstance(at, list):
        if last == "-":
            at.append(change["value"])
            return
        last = int(last)
    if change["op"] != "add":
        at[last]  # has to be there
    if change["op"] == "remove":
        del at[last]
    else:
        at[last] = change["value"]
