"""What the pods start is what the `sluice` command takes."""

from __future__ import annotations

import re

import click

from services.cli.__main__ import sluice
from tests.chart.helm import Object, component, one, pod_of, render, workloads


def command_of(service: str) -> click.Command:
    found = sluice.get_command(click.Context(sluice), service)
    assert found is not None, service
    return found


def options(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}


def unknown(argv: list[str]) -> set[tuple[str, str]]:
    """What the command does not take of a command line: (service, word)."""
    service, *words = argv[1:]
    command = command_of(service)
    if isinstance(command, click.Group):
        if words[0] not in command.commands:
            return {(service, words[0])}
        command, words = command.commands[words[0]], words[1:]
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    return {(service, option) for option in given - options(command)}


def command_lines(rendered: list[Object]) -> list[list[str]]:
    found = [[*c["command"], *c.get("args", [])] for w in workloads(rendered) for c in pod_of(w)["containers"] if "command" in c]
    return [argv for argv in found if argv[0] == "sluice"]


def test_every_option_is_one_that_the_command_has(rendered: list[Object]) -> None:
    lines = command_lines(rendered)

    assert {"watcher", "compiler", "applier"} <= {argv[1] for argv in lines}
    assert {missing for argv in lines for missing in unknown(argv)} == set()


def test_each_argument_that_must_be_given_is(rendered: list[Object]) -> None:
    for argv in command_lines(rendered):
        command = command_of(argv[1])
        if isinstance(command, click.Group):
            continue
        for parameter in command.params:
            if parameter.required:
                assert set(parameter.opts) & set(argv), (argv[1], parameter.name)


def test_variables_in_arguments_are_set(rendered: list[Object]) -> None:
    for workload in workloads(rendered):
        for container in pod_of(workload)["containers"]:
            used = set(re.findall(r"\$\((\w+)\)", " ".join(map(str, container.get("args", [])))))
            assert used <= {variable["name"] for variable in container.get("env", [])}


def test_arguments_are_texts(rendered: list[Object]) -> None:
    """A number or a boolean among them is refused by the API server."""
    for argv in command_lines(rendered):
        assert all(isinstance(word, str) for word in argv), argv


def value_after(obj: Object, option: str) -> str:
    arguments = pod_of(obj)["containers"][0]["args"]
    value: str = arguments[arguments.index(option) + 1]
    return value


def test_an_edge_pod_is_named_after_its_node_or_itself() -> None:
    daemons, deployed = render({"controller": {"kind": "DaemonSet"}}), render()

    assert value_after(one(daemons, "DaemonSet", "edge-sluice-controller"), "--node") == "$(NODE_NAME)"
    assert value_after(one(deployed, "Deployment", "edge-sluice-controller"), "--node") == "$(POD_NAME)"


def test_nginx_listens_where_the_flags_of_the_original_say() -> None:
    rendered = render(
        {
            "controller": {
                "extraArgs": {"http-port": 8080, "https-port": "8443", "healthz-port": 10300},
                "livenessProbe": None,
                "readinessProbe": None,
            }
        }
    )

    edge = one(rendered, "Deployment", "edge-sluice-controller")
    assert [value_after(edge, f"--{name}-port") for name in ("http", "https", "health")] == ["8080", "8443", "10300"]
    ports = {p["name"]: p["containerPort"] for p in pod_of(edge)["containers"][0]["ports"]}
    assert ports == {"http": 8080, "https": 8443, "metrics": 10300}


def test_three_servers_are_named_one_by_one_and_hold_three_copies() -> None:
    watcher = one(render({"nats": {"replicas": 3}}), "Deployment", "edge-sluice-watcher")

    assert value_after(watcher, "--nats-url") == ",".join(f"tls://edge-sluice-nats-{i}.edge-sluice-nats.ingress.svc:4222" for i in range(3))
    assert value_after(watcher, "--nats-replicas") == "3"


def test_the_certificate_job_is_run_as_the_original_runs_it() -> None:
    rendered = render()
    jobs = {o["metadata"]["name"]: pod_of(o)["containers"][0]["args"] for o in rendered if o["kind"] == "Job" and component(o) != "keys"}

    service = "edge-sluice-controller-admission"
    assert jobs == {
        "edge-sluice-admission-create": [
            "certgen",
            "create",
            f"--host={service},{service}.$(POD_NAMESPACE).svc",
            "--namespace=$(POD_NAMESPACE)",
            "--secret-name=edge-sluice-admission",
        ],
        "edge-sluice-admission-patch": [
            "certgen",
            "patch",
            "--webhook-name=edge-sluice-admission",
            "--namespace=$(POD_NAMESPACE)",
            "--patch-mutating=false",
            "--secret-name=edge-sluice-admission",
            "--patch-failure-policy=Fail",
        ],
    }
