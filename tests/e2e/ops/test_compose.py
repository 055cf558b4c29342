"""The fleet in containers: the compose files, and a trial in which a worker is killed."""

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fetchfleet.jobs import keys
from fetchfleet.worker.inspect.registration import name_of
from fetchfleet.worker.policy.egress import Egress
from tests.support import compose
from tests.support.compose import Project, docker
from tests.support.containers import container_error
from tests.support.waiting import wait_until
from tools.demo import hosts

TRIAL_VARIABLE = "FETCHFLEET_TEST_COMPOSE"
DEMO_ENV = compose.ROOT / "ops" / "demo.env"
# The demo's file with another subnet, as the demo may be running.
TRIAL_ENV = DEMO_ENV.read_text().replace("172.31.251.0", "172.31.252.0")

MONITORING = compose.ROOT / "ops" / "monitoring"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
needs_compose = pytest.mark.skipif(
    compose.command() is None, reason="neither docker compose nor docker-compose"
)


def variables(text: str) -> dict[str, str]:
    """Return the variables of an env file."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def services_of(profile: str) -> set[str]:
    """Return the services that only this profile starts. Compose 1 lists those of all profiles."""
    services = yaml.safe_load(compose.FILE.read_text())["services"]
    return {name for name, service in services.items() if profile in service.get("profiles", [])}


def test_every_demo_host_has_an_alias_in_the_compose_file() -> None:
    """A host without an alias cannot be resolved."""
    (aliases,) = re.findall(r"aliases:\s*\[(.*?)\]", compose.FILE.read_text(), re.DOTALL)

    assert set(hosts.BEHAVIOURS) == set(re.split(r",\s*", aliases))


def test_the_demos_workers_may_dial_only_the_demos_network() -> None:
    """Subnet and allowed network are equal."""
    variable = variables(DEMO_ENV.read_text())

    assert variable["FETCHFLEET_SUBNET"] == variable["FETCHFLEET_ALLOW_NET"]
    assert Egress() != Egress.parse(variable["FETCHFLEET_ALLOW_NET"])


@needs_compose
def test_compose_accepts_the_file_with_and_without_the_demo() -> None:
    """Either version of Compose accepts it."""
    project = Project("fetchfleet", DEMO_ENV)
    demo = ("--profile", "demo")

    assert 0 == project.run("config", "--quiet").returncode
    assert 0 == project.run(*demo, "config", "--quiet").returncode
    assert {"redis", "worker"} <= set(project.output("config", "--services").split())
    assert {"redis", "worker", "demo-hosts", "producer"} <= set(
        project.output(*demo, "config", "--services").split()
    )
    assert {"demo-hosts", "producer"} == services_of("demo")


@needs_compose
def test_the_profile_monitoring_adds_console_prometheus_and_grafana() -> None:
    """Only their ports are published, on the loopback address; workers serve metrics within the network."""
    project = Project("fetchfleet", DEMO_ENV)
    services = yaml.safe_load(compose.FILE.read_text())["services"]
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}

    assert {"redis", "worker", "serve", "prometheus", "grafana"} <= set(
        project.output("--profile", "monitoring", "config", "--services").split()
    )
    assert {"serve", "prometheus", "grafana"} == services_of("monitoring")
    assert {"serve", "prometheus", "grafana"} == ports.keys()
    assert all(port.startswith("127.0.0.1:") for published in ports.values() for port in published)
    assert "0.0.0.0:9464" == services["worker"]["environment"]["FETCHFLEET_METRICS"]


def test_prometheus_reads_the_ports_of_workers_and_console() -> None:
    """Names and ports of its targets are those of the compose file."""
    services = yaml.safe_load(compose.FILE.read_text())["services"]
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    [workers, serve] = config["scrape_configs"]
    [found] = workers["dns_sd_configs"]
    [target] = serve["static_configs"][0]["targets"]

    assert (["worker"], 9464) == (found["names"], found["port"])
    assert f":{found['port']}" in services["worker"]["environment"]["FETCHFLEET_METRICS"]
    assert "serve" in services
    assert target.replace("serve", "0.0.0.0") in services["serve"]["command"]
    assert serve["authorization"]["credentials_file"] in services["serve"]["command"]


@needs_promtool
def test_prometheus_accepts_its_configuration(tmp_path: Path) -> None:
    """The token is that of the console."""
    copy = tmp_path / "monitoring"
    shutil.copytree(MONITORING, copy)
    (tmp_path / "token").write_text("only-a-demo")
    file = copy / "prometheus.yml"
    file.write_text(file.read_text().replace("/run/secrets/console-token", str(tmp_path / "token")))
    checked = subprocess.run(
        ["promtool", "check", "config", str(file)], capture_output=True, text=True, timeout=60, check=False
    )

    assert checked.returncode == 0, checked.stderr
    assert str(tmp_path) in file.read_text()


@needs_compose
def test_the_users_file_is_loaded_and_workers_connect_as_its_user_worker() -> None:
    """Compose merges compose.users.yml over docker-compose.yml."""
    users = ("--file", str(compose.ROOT / "ops" / "compose.users.yml"))
    config = Project("fetchfleet", DEMO_ENV).output(*users, "config")

    assert "--aclfile" in config
    assert "redis://worker:only-a-demo@redis:6379/0" in config


@needs_compose
def test_a_fleet_without_a_password_is_refused(tmp_path: Path) -> None:
    """The error names the missing variable."""
    empty = tmp_path / "env"
    empty.touch()
    ended = Project("fetchfleet", empty).run("config")

    assert 0 != ended.returncode
    assert "set FETCHFLEET_REDIS_PASSWORD" in ended.stderr


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Project]:
    """Yield the running demo with three workers; remove its containers, volumes and images at the end."""
    if os.environ.get(TRIAL_VARIABLE) != "1":
        pytest.skip(f"{TRIAL_VARIABLE} is not 1; the trial builds images and takes a minute or two")
    if compose.command() is None:
        pytest.skip("neither docker compose nor docker-compose")
    if trouble := container_error():
        pytest.skip(f"no container can run: {trouble}")
    env_file = tmp_path / "env"
    env_file.write_text(TRIAL_ENV)
    project = Project("fetchfleet-trial", env_file)
    try:
        project.output("--profile", "demo", "up", "--detach", "--build", "--scale", "worker=3")
        yield project
    finally:
        project.output("--profile", "demo", "down", "--volumes", "--rmi", "local", "--timeout", "5")


@pytest.mark.timeout(900)
async def test_one_of_three_workers_is_killed_and_every_result_arrives_once(
    trial: Project, tmp_path: Path
) -> None:
    """Other workers reclaim its lanes, every fetch has its outcome, and a stop ends them with 0."""
    (producer,) = trial.containers("producer")
    victim = await wait_until(lambda: at_work_on(trial, hosts.TRICKLING), "a worker on a slow host", 60)
    docker("kill", victim)
    was_running = inspected(producer, "State.Running")
    ended_with = await asyncio.to_thread(docker, "wait", producer)
    results = results_of(producer, tmp_path)
    workers = {worker[: len(victim)]: worker for worker in trial.containers("worker")}
    survivors = [worker for name, worker in workers.items() if name != victim]
    await wait_until(
        lambda: {"healthy"} == {inspected(worker, "State.Health.Status") for worker in survivors},
        "the survivors to be healthy",
        60,
    )
    trial.output("stop", "worker")
    logs = trial.output("logs", "--no-color", "worker")

    assert "true" == was_running
    assert "0" == ended_with.strip(), trial.output("logs", "--no-color", "producer")
    assert len(list(hosts.fetches(dict.fromkeys(hosts.BEHAVIOURS, "")))) == len(results)
    assert len(results) == len({result["id"] for result in results})
    assert [] == [result for result in results if result["outcome"] != result["meta"]["expect"]]
    assert sum(result["interruptions"] for result in results) >= 1
    assert "lane.rescued" in logs
    assert ["0", "0"] == [inspected(worker, "State.ExitCode") for worker in survivors]
    assert "137" == inspected(workers[victim], "State.ExitCode")


def at_work_on(project: Project, lane: str) -> str:
    """Return the short ID of the container whose worker has claims in the lane, "" if there is none."""
    ask = ("exec", "-T", "redis", "redis-cli")
    if project.output(*ask, "hlen", keys.claimed(lane)).strip() == "0":
        return ""
    owner = project.output(*ask, "hget", keys.lane(lane), "owner").strip()
    return name_of(owner).rpartition("-")[0]


def inspected(container: str, what: str) -> str:
    """Return one property of a container."""
    return docker("inspect", "--format", f"{{{{.{what}}}}}", container).strip()


def results_of(producer: str, folder: Path) -> list[dict[str, Any]]:
    """Return the results that the producer wrote."""
    docker("cp", f"{producer}:/data/demo/results.jsonl", str(folder))
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
