"""The Kubernetes manifests: valid without a cluster, and consistent with each other and with the worker."""

import json
import re
import shutil
import subprocess
from functools import cache
from ipaddress import collapse_addresses, ip_network
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from fetchfleet.worker.policy.egress import IPV4_TABLE, IPV6_TABLE, IPV6_UNICAST
from fetchfleet.worker.policy.model import LanePolicy
from fetchfleet.worker.settings import Settings

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "ops" / "kubernetes"
SCALED_OBJECT = FOLDER / "autoscaling" / "scaled-object.yaml"
SCHEMA = json.loads((Path(__file__).parent / "scaled_object.schema.json").read_text())

Manifest = dict[str, Any]

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@cache
def manifests() -> list[Manifest]:
    """Return the manifests of the folder, without those of kustomize and KEDA."""
    texts = [file.read_text() for file in sorted(FOLDER.glob("*.yaml"))]
    parsed = [manifest for text in texts for manifest in yaml.safe_load_all(text)]
    return [manifest for manifest in parsed if manifest["kind"] != "Kustomization"]


def named(kind: str, name: str = "fetchfleet-worker") -> Manifest:
    """Return one manifest."""
    [found] = [each for each in manifests() if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pod_of(name: str) -> Manifest:
    """Return the spec of the pods of a Deployment."""
    spec: Manifest = named("Deployment", name)["spec"]["template"]["spec"]
    return spec


def kustomized(folder: Path) -> list[Manifest]:
    """Return the output of `kubectl kustomize`."""
    built = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


@pytest.mark.parametrize(
    "manifest", manifests(), ids=lambda each: f"{each['kind']}-{each['metadata']['name']}"
)
def test_a_manifest_is_valid(manifest: Manifest) -> None:
    """The schema of its kind accepts it, and has every field."""
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_scaled_object_is_valid() -> None:
    """Its fields are those of KEDA, and metadata of triggers are texts."""
    jsonschema.validate(yaml.safe_load(SCALED_OBJECT.read_text()), SCHEMA)


def test_a_scaled_object_with_an_unknown_field_is_invalid() -> None:
    """The schema is closed."""
    manifest = yaml.safe_load(SCALED_OBJECT.read_text())
    manifest["spec"]["maxReplicas"] = 3

    with pytest.raises(jsonschema.ValidationError, match="maxReplicas"):
        jsonschema.validate(manifest, SCHEMA)


@needs_kubectl
def test_kustomize_builds_the_fleet(tmp_path: Path) -> None:
    """All but the example of the Secret is applied, in one namespace; KEDA is a component to add."""
    shutil.copytree(FOLDER, tmp_path / "ops")
    plain = kustomized(tmp_path / "ops")
    file = tmp_path / "ops" / "kustomization.yaml"
    file.write_text(file.read_text().replace("# components: [autoscaling]", "components: [autoscaling]"))
    scaled = kustomized(tmp_path / "ops")

    expected = {(each["kind"], each["metadata"]["name"]) for each in manifests() if each["kind"] != "Secret"}
    assert expected == {(each["kind"], each["metadata"]["name"]) for each in plain}
    assert {"fetchfleet"} == {
        each["metadata"].get("namespace", each["metadata"]["name"]) for each in plain + scaled
    }
    assert {"ScaledObject"} == {each["kind"] for each in scaled} - {each["kind"] for each in plain}
    [workers] = [
        each
        for each in scaled
        if each["metadata"]["name"] == "fetchfleet-worker" and "template" in each.get("spec", {})
    ]
    assert "replicas" not in workers["spec"]


def test_every_selector_matches_pods_and_every_port_has_a_name() -> None:
    """Services, budgets and network policies select existing pods, and their ports are ports of these."""
    deployments = [each["spec"]["template"] for each in manifests() if each["kind"] == "Deployment"]
    for manifest in manifests():
        spec = manifest.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector") or {}
        labels = selector.get("matchLabels", selector)
        selected = [pod for pod in deployments if labels.items() <= pod["metadata"]["labels"].items()]
        containers = [container for pod in selected for container in pod["spec"]["containers"]]
        ports = {port["name"] for container in containers for port in container.get("ports", [])}
        wanted = {port["targetPort"] for port in spec.get("ports", [])}
        wanted |= {port["port"] for rule in spec.get("ingress", []) for port in rule["ports"]}
        assert selected, manifest["metadata"]["name"]
        assert wanted <= ports, manifest["metadata"]["name"]


def secret_keys_of(pod: Manifest) -> set[tuple[str, str]]:
    """Return the name and key of each Secret that the pod reads."""
    variables = [
        each["valueFrom"]["secretKeyRef"] for each in pod["containers"][0]["env"] if "valueFrom" in each
    ]
    volumes = [each["secret"] for each in pod["volumes"] if "secret" in each]
    keys = {(each["name"], each["key"]) for each in variables}
    return keys | {(each["secretName"], item["key"]) for each in volumes for item in each["items"]}


def test_the_example_of_the_secret_has_the_keys_that_pods_read() -> None:
    """Each key is read by the worker or by the console."""
    keys = {("fetchfleet", key) for key in named("Secret", "fetchfleet")["stringData"]}

    assert keys == secret_keys_of(pod_of("fetchfleet-worker")) | secret_keys_of(pod_of("fetchfleet-serve"))


def test_workers_share_one_volume_for_bodies() -> None:
    """Many nodes may mount the claim that their volume names."""
    [claim] = [each["persistentVolumeClaim"] for each in pod_of("fetchfleet-worker")["volumes"][:1]]

    assert ["ReadWriteMany"] == named("PersistentVolumeClaim", claim["claimName"])["spec"]["accessModes"]


@pytest.mark.parametrize("name", ["fetchfleet-worker", "fetchfleet-serve"])
def test_a_pod_has_no_privileges(name: str) -> None:
    """It runs as the user of the image, without capabilities, on a read-only root file system."""
    [user] = re.findall(r"useradd --uid (\d+)", (ROOT / "ops" / "Dockerfile").read_text())
    pod = pod_of(name)
    [container] = pod["containers"]

    assert (True, int(user)) == (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"])
    assert {"type": "RuntimeDefault"} == pod["securityContext"]["seccompProfile"]
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def test_kubernetes_waits_until_a_stopping_worker_has_returned_its_claims() -> None:
    """The grace of the pod is longer than grace and lease of the worker together."""
    grace_s = pod_of("fetchfleet-worker")["terminationGracePeriodSeconds"]

    assert Settings().grace_s + Settings().lease_s < grace_s


def test_the_network_policy_refuses_what_the_worker_refuses() -> None:
    """Its blocks are the public addresses of the egress rule, at the default ports of the policy."""
    [rule] = named("NetworkPolicy")["spec"]["egress"]
    blocks = {ip_network(each["ipBlock"]["cidr"]): each["ipBlock"]["except"] for each in rule["to"]}
    tables = {
        ip_network("0.0.0.0/0"): [row.network for row in IPV4_TABLE],
        IPV6_UNICAST: [row.network for row in IPV6_TABLE if row.network.subnet_of(IPV6_UNICAST)],  # type: ignore[arg-type]
    }

    assert blocks.keys() == tables.keys()
    for block, refused in tables.items():
        assert [str(network) for network in collapse_addresses(refused)] == blocks[block]  # type: ignore[type-var]
    assert set(LanePolicy().ports) == {port["port"] for port in rule["ports"]}


def test_a_fleet_whose_hosts_cool_down_is_not_scaled_up() -> None:
    """Triggers count lanes that could start a fetch, and fetches in flight, but not the backlog."""
    queries = [
        each["metadata"]["query"] for each in yaml.safe_load(SCALED_OBJECT.read_text())["spec"]["triggers"]
    ]
    used = {metric for query in queries for metric in re.findall(r"fetchfleet_\w+", query)}

    assert {"fetchfleet_fleet_lanes_runnable", "fetchfleet_fleet_in_flight_fetches"} == used
    assert yaml.safe_load(SCALED_OBJECT.read_text())["spec"]["scaleTargetRef"]["name"] == "fetchfleet-worker"
