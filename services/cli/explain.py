"""`sluice explain URL`: which Ingress, rule, policy and backend, and why these."""

from __future__ import annotations

import click
import msgspec

from services.cli import options
from services.cli.running import ask, print_json
from services.cli.state import StateDirectory, Up
from services.shared.bus.port import Bus
from services.shared.contracts.question import ExplainAnswer, ExplainQuestion
from services.shared.contracts.subjects import ASK_COMPILER_EXPLAIN, of_group


@click.command("explain")
@click.argument("url")
@click.option("--method", default="GET", show_default=True)
@click.option("--policy", "show_policy", is_flag=True, help="Show the policy's nginx text.")
@options.state
@options.as_json
def command(url: str, method: str, show_policy: bool, state: StateDirectory, as_json: bool) -> None:
    """Which Ingress, rule, policy, backend and endpoints answer URL, and why."""

    async def run(bus: Bus, up: Up) -> ExplainAnswer:
        question = ExplainQuestion(url=url, method=method)
        answer = await bus.request(of_group(ASK_COMPILER_EXPLAIN, up.group), msgspec.json.encode(question), timeout=10)
        return msgspec.json.decode(answer, type=ExplainAnswer)

    answer = ask(state, run)
    if as_json:
        print_json(answer)
        return
    for name, value in (
        ("host", f"{answer.host} (row {answer.matched_host})"),
        ("path", f"{answer.path} ({answer.match} {answer.matched_path} {answer.path_type})"),
        ("ingress", f"{answer.ingress} {answer.rule}"),
        ("policy", answer.policy),
        ("backend", answer.backend),
        ("endpoints", ", ".join(answer.endpoints)),
        ("certificate", answer.certificate[:12]),
    ):
        if value.strip():
            click.echo(f"{name:12} {value}")
    for note in answer.notes:
        click.echo(f"- {note}")
    for problem in answer.problems:
        click.echo(f"! {problem.sentence()}")
    if show_policy:
        click.echo(answer.policy_text)
