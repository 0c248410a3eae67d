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
        ("version", answer.version),
        ("host", answer.host + (f" (row {answer.matched_host})" if answer.matched_host else "")),
        ("path", answer.path + _matched(answer)),
        ("ingress", f"{answer.ingress} {answer.rule}"),
        ("policy", answer.policy),
        ("status", str(answer.status or "")),
        ("backend", answer.backend),
        ("endpoints", ", ".join(answer.endpoints)),
        ("certificate", answer.certificate[:12]),
    ):
        if value.strip():
            click.echo(f"{name:12} {_plain(value)}")
    for note in answer.notes:
        click.echo(f"- {_plain(note)}")
    for problem in answer.problems:
        click.echo(f"! {problem.sentence()}")
    if show_policy:
        click.echo(answer.policy_text)


def _matched(answer: ExplainAnswer) -> str:
    words = " ".join(filter(None, (answer.match, answer.matched_path, answer.path_type)))
    return f" ({words})" if words else ""


def _plain(text: str) -> str:
    """A decoded path may hold what a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
