"""What stands in deploy/ fits together, and what it runs can be typed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from hotspare.cli import arguments
from hotspare.settings import KEYS, Address

DEPLOY = Path(__file__).parents[2] / "deploy"
SIZES = {"Mi": 2**20, "Gi": 2**30}


def manifests(name: str) -> dict[str, Any]:
    """By kind."""
    return {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())}


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return pod


MEMBERS, SIDECAR = manifests("members.yaml"), manifests("sidecar.yaml")
PODS = {"members": pod_of(MEMBERS["StatefulSet"]), "sidecar": pod_of(SIDECAR["Deployment"])}
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def node_container(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = (each for each in containers(pod) if each["name"] == "hotspare")
    return found


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container.get("env", ())}


def unit() -> ConfigParser:
    parsed = ConfigParser(interpolation=None, strict=False)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(DEPLOY / "hotspare.service")
    return parsed


def typed(words: list[str]) -> Any:
    """Parsed as the shell's `hotspare …` would be."""
    name, *rest = words
    assert Path(name).name == "hotspare"
    return arguments.parse([word.replace("$(POD_NAME)", "hotspare-0") for word in rest])


def commands() -> Iterator[tuple[str, list[str]]]:
    """Everything that is run, and where it stands."""
    for name, pod in PODS.items():
        for each in containers(pod):
            if "args" in each:
                yield f"{name}: {each['name']}", ["hotspare", *each["args"]]
            for probe in ("readinessProbe", "startupProbe", "livenessProbe"):
                if "exec" in each.get(probe, {}):
                    yield f"{name}: {probe} of {each['name']}", each[probe]["exec"]["command"]
            if "lifecycle" in each:
                yield f"{name}: preStop of {each['name']}", each["lifecycle"]["preStop"]["exec"]["command"]
    for name, service in COMPOSE["services"].items():
        yield f"compose: {name}", ["hotspare", *service["command"]]
        yield f"compose: health of {name}", service["healthcheck"]["test"][1:]
    yield "systemd", shlex.split(unit()["Service"]["ExecStart"])
    for number, found in enumerate(re.findall(r"^CMD (\[.*\])$", dockerfile(), re.MULTILINE)):
        yield f"Dockerfile: {number}", ["hotspare", *json.loads(found)]


def dockerfile() -> str:
    return (DEPLOY / "Dockerfile").read_text()


COMMANDS = dict(commands())


@pytest.mark.parametrize("where", COMMANDS)
def test_every_command_can_be_typed(where: str):
    options = typed(COMMANDS[where])
    assert options.command in ("serve", "run", "status", "flush")
    if options.command == "run":
        assert (options.program, options.arguments[-1]) == ("gunicorn", "shop:app")
    if options.command == "status":
        assert options.ready


def test_there_are_commands_of_every_kind():
    found = {typed(words).command for words in COMMANDS.values()}
    assert found == {"serve", "run", "status", "flush"}


def settings_in_use() -> Iterator[str]:
    for pod in PODS.values():
        for each in containers(pod):
            yield from environment(each)
    for service in COMPOSE["services"].values():
        yield from service["environment"]


def test_every_setting_exists():
    for variable in settings_in_use():
        if variable.startswith("HOTSPARE_"):
            assert variable.removeprefix("HOTSPARE_").lower() in KEYS, variable


def test_every_address_is_one():
    places = [environment(each) for pod in PODS.values() for each in containers(pod)]
    places += [service["environment"] for service in COMPOSE["services"].values()]
    for place in places:
        for key in ("HOTSPARE_LISTEN", "HOTSPARE_ATTACH", "HOTSPARE_REPLICA_NODES"):
            for text in filter(None, place.get(key, "").split(",")):
                assert Address.parse(text).port == 7401


# Kubernetes


def test_the_members_know_each_other_by_the_names_that_they_get():
    stateful_set, service = MEMBERS["StatefulSet"], MEMBERS["Service"]
    container = node_container(PODS["members"])
    listed = environment(container)["HOTSPARE_REPLICA_NODES"].split(",")
    name = container["args"][container["args"].index("--node") + 1]
    assert listed == [
        name.replace("$(POD_NAME)", f"{stateful_set['metadata']['name']}-{number}")
        for number in range(stateful_set["spec"]["replicas"])
    ]
    assert stateful_set["spec"]["serviceName"] == service["metadata"]["name"]
    assert all(Address.parse(each).host.endswith(f".{service['metadata']['name']}") for each in listed)
    assert environment(node_container(PODS["sidecar"]))["HOTSPARE_REPLICA_NODES"].split(",") == listed


def test_the_members_can_found_a_cluster_and_are_taken_down_one_at_a_time():
    stateful_set, service = MEMBERS["StatefulSet"], MEMBERS["Service"]
    labels = stateful_set["spec"]["template"]["metadata"]["labels"]
    assert stateful_set["spec"]["podManagementPolicy"] == "Parallel"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == stateful_set["spec"]["selector"]["matchLabels"] == labels
    budget = MEMBERS["PodDisruptionBudget"]["spec"]
    assert (budget["maxUnavailable"], budget["selector"]["matchLabels"]) == (1, labels)
    container = node_container(PODS["members"])
    assert "--ready" in container["readinessProbe"]["exec"]["command"]
    assert "exec" not in container["livenessProbe"], "one without a majority must not be restarted for it"
    flushing_ms = typed(container["lifecycle"]["preStop"]["exec"]["command"]).timeout_ms
    assert flushing_ms / 1000 < PODS["members"]["terminationGracePeriodSeconds"]


def test_containers_that_share_a_copy_share_what_that_takes():
    pod = PODS["sidecar"]
    node, application = node_container(pod), pod["containers"][0]
    assert pod["shareProcessNamespace"] is True
    assert pod["securityContext"]["runAsUser"] == PODS["members"]["securityContext"]["runAsUser"]
    directory = Path(environment(node)["HOTSPARE_DATA_DIR"])
    for each in (node, application):
        assert "securityContext" not in each, "they run as the same user"
        (mount,) = (found for found in each["volumeMounts"] if found["name"] == "copy")
        assert Path(mount["mountPath"]) == directory.parent
        assert not mount.get("readOnly")
    assert node["restartPolicy"] == "Always", "else it would have to end before the application starts"
    listening = Address.parse(environment(node)["HOTSPARE_LISTEN"])
    attached = Address.parse(environment(application)["HOTSPARE_ATTACH"])
    assert (attached.host, attached.port) == ("127.0.0.1", listening.port)


def size_bytes(text: str) -> int:
    return int(text[:-2]) * SIZES[text[-2:]]


@pytest.mark.parametrize("name", PODS)
def test_there_is_memory_for_the_copy_and_for_what_replaces_it(name: str):
    pod = PODS[name]
    container = node_container(pod)
    (volume,) = (each for each in pod["volumes"] if each["name"] == "copy")
    room_bytes = size_bytes(volume["emptyDir"]["sizeLimit"])
    assert volume["emptyDir"]["medium"] == "Memory"
    assert room_bytes >= 2 * int(environment(container)["HOTSPARE_MAX_MEMORY_BYTES"]) + 2**28
    assert size_bytes(container["resources"]["limits"]["memory"]) >= room_bytes + 2**28


# The others


def test_the_members_of_the_compose_file_know_each_other():
    members = {name for name in COMPOSE["services"] if name.startswith("member")}
    for name, service in COMPOSE["services"].items():
        listed = service["environment"]["HOTSPARE_REPLICA_NODES"].split(",")
        assert {Address.parse(each).host for each in listed} == members
        assert typed(["hotspare", *service["command"]]).node == f"{name}:7401"
        room_bytes = int(service["shm_size"].removesuffix("gb")) * 2**30
        assert room_bytes >= 2 * int(service["environment"]["HOTSPARE_MAX_MEMORY_BYTES"]) + 2**28


def test_the_image_is_built_of_what_is_there():
    for line in re.findall(r"^COPY (.*)$", dockerfile(), re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert (DEPLOY.parent / source).exists(), source
    stages = set(re.findall(r" AS (\w+)$", dockerfile(), re.MULTILINE))
    assert {service["build"]["target"] for service in COMPOSE["services"].values()} <= stages
    assert (DEPLOY.parent / COMPOSE["services"]["shop"]["build"]["dockerfile"]).exists()


def test_the_unit_gives_a_node_time_to_hand_over_and_starts_it_again():
    service = unit()["Service"]
    assert service["Restart"] == "always"
    assert int(service["TimeoutStopSec"]) >= 10
    assert service["User"] == "hotspare"
    assert "/dev/shm" in service["ReadWritePaths"]


def test_the_reasons_are_given():
    reasons = (DEPLOY / "README.md").read_text()
    for word in (
        *("Parallel", "publishNotReadyAddresses", "PodDisruptionBudget", "preStop", "podAntiAffinity"),
        *("shareProcessNamespace", "restartPolicy", "enableServiceLinks", "RemoveIPC", "ReadWritePaths"),
        *("shm_size", "StateDirectory", "KillMode", "TimeoutStopSec", "advertise"),
    ):
        assert word in reasons, word
