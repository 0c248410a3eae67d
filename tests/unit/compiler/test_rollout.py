"""Staged rollout: who is let in when, what halts it, what a restarted or another compiler makes of it."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from services.applier.rollout import held_back
from services.compiler.rollout import Rollout
from services.shared.contracts.report import NodeReport
from services.shared.contracts.rollout import Gate, Waiting, admits, decode_gate, encode_gate, lets_in, position
from services.shared.contracts.version import Manifest, Policy, PolicyBundle

SOAK = 2.0
NODES = tuple(sorted((f"node-{i}" for i in range(16)), key=position))
"""In the order in which a share takes them."""
FIRST = NODES[0]
IN_SHARE = {n for n in NODES if position(n) < 25}


def _version(number: int, bundle: str, pinned: int = 0) -> Manifest:
    return Manifest(
        group="g", epoch=1, number=number, digest=f"d{number}", policy_digest=bundle, tables_digest="", rows=0, row_bytes=0, pinned=pinned
    )


def _report(node: str, bundle: str, *, unloaded: Iterable[str] = (), refused: Iterable[str] = (), ready: bool = True) -> NodeReport:
    return NodeReport(
        node=node, group="g", at=0, policy_digest=bundle, unloaded=tuple(unloaded), refused=dict.fromkeys(refused, "no"), ready=ready
    )


class Fleet:
    """Nodes that install what the gate lets in, as soon as `install` is called; a clock; a head that moves."""

    def __init__(self, rollout: Rollout, nodes: Iterable[str] = NODES) -> None:
        self.rollout = rollout
        self.now = 0.0
        self.number = 0
        self.policies: frozenset[str] = frozenset()
        self.live = set(nodes)
        self.loaded: dict[str, set[str]] = {n: set() for n in nodes}
        self.refused: dict[str, set[str]] = {n: set() for n in nodes}

    @property
    def bundle(self) -> str:
        return ",".join(sorted(self.policies))

    @property
    def scopes(self) -> dict[str, str]:
        """`http-1` is a global policy, `a` is not."""
        return {p: p.split("-")[0] if "-" in p else "location" for p in self.policies}

    @property
    def gate(self) -> Gate:
        assert self.rollout.gate is not None
        return self.rollout.gate

    def head(self, *policies: str, pinned: int = 0) -> None:
        self.number, self.policies = self.number + 1, frozenset(policies)
        head = _version(self.number, self.bundle, pinned)
        if not self.rollout.follows(head):
            self.rollout.take(head, self.scopes)

    def let_in(self, policy: str) -> set[str]:
        return {n for n in self.live if admits(self.gate, n, self.bundle, policy)}

    def install(self, refuse: Iterable[str] = ()) -> None:
        for node in self.live:
            for policy in self.policies:
                if admits(self.gate, node, self.bundle, policy):
                    (self.refused if policy in refuse else self.loaded)[node].add(policy)

    def step(self, after: float = 0.0) -> float | None:
        self.now += after
        reports = {
            n: _report(n, self.bundle, unloaded=self.policies - self.loaded[n] - self.refused[n], refused=self.refused[n])
            for n in self.live
        }
        return self.rollout.step(reports, self.now)

    def settle(self) -> None:
        """Install and wait until nothing moves any more."""
        for _ in range(4):
            self.install()
            self.step()
            self.step(SOAK)


def _running(rollout: Rollout | None = None, nodes: Iterable[str] = NODES) -> Fleet:
    """Everybody runs policy a."""
    fleet = Fleet(rollout or Rollout(soak_seconds=SOAK), nodes)
    fleet.head("a")
    fleet.step()
    fleet.install()
    assert fleet.gate.waiting == {}, "what is there first is open to all"
    return fleet


def test_a_new_policy_goes_to_one_canary_then_to_a_share_then_to_all_and_soaks_in_between() -> None:
    fleet = _running()
    fleet.head("a", "b")
    fleet.step()
    assert fleet.let_in("b") == {FIRST}
    assert fleet.let_in("a") == set(NODES)

    assert fleet.step(100) is None, "not by time alone"
    assert fleet.let_in("b") == {FIRST}

    fleet.install()
    assert fleet.step() == fleet.now + SOAK
    fleet.step(SOAK - 0.1)
    assert fleet.let_in("b") == {FIRST}
    fleet.step(0.1)
    assert fleet.let_in("b") == IN_SHARE
    assert len(IN_SHARE) > 1

    fleet.step(100)
    assert fleet.let_in("b") == IN_SHARE
    fleet.install()
    fleet.step()
    fleet.step(SOAK)
    assert fleet.let_in("b") == set(NODES)


def test_named_canaries_come_first_unless_none_of_them_is_there() -> None:
    last = NODES[-1]
    fleet = _running(Rollout(soak_seconds=SOAK, canaries=[last, "somewhere"]))
    fleet.head("a", "b")
    fleet.step()
    assert fleet.let_in("b") == {last}

    fleet = _running(Rollout(soak_seconds=SOAK, canaries=["somewhere"]))
    fleet.head("a", "b")
    fleet.step()
    assert fleet.let_in("b") == {FIRST}


def test_a_refusal_halts_that_policy_and_no_other_whoever_refuses() -> None:
    for who in (FIRST, NODES[-1]):
        fleet = _running()
        fleet.head("a", "bad", "good")
        fleet.step()
        fleet.refused[who].add("bad")
        fleet.settle()
        assert fleet.gate.waiting == {"bad": Waiting(halted=who)}
        assert fleet.let_in("bad") == {FIRST, who}, "whoever refused it may try again"

        fleet.live.discard(who)  # its refusal outlives its report
        fleet.settle()
        assert fleet.gate.waiting["bad"] == Waiting(halted=who)

        fleet.head("a", "good")
        fleet.settle()
        assert fleet.gate.waiting == {}


def test_a_node_that_runs_after_all_what_it_refused_ends_the_halt() -> None:
    fleet = _running()
    fleet.head("a", "b")
    fleet.refused[FIRST].add("b")
    fleet.step()
    assert fleet.gate.waiting["b"].halted == FIRST
    fleet.refused[FIRST].clear()
    fleet.settle()
    assert fleet.gate.waiting == {}


def test_one_node_is_let_in_at_once_but_not_because_the_others_are_silent() -> None:
    alone = _running(nodes=[FIRST])
    alone.head("a", "b")
    alone.step()
    assert alone.gate.waiting == {}

    fleet = _running()
    fleet.live = {FIRST}
    fleet.head("a", "b")
    fleet.step()
    assert fleet.gate.waiting == {"b": Waiting()}
    fleet.install()
    fleet.step()
    assert fleet.gate.waiting == {"b": Waiting()}, "it has to soak"
    fleet.step(SOAK)
    assert fleet.gate.waiting == {}

    heard = Rollout(soak_seconds=SOAK)
    heard.know(["node-that-says-nothing"])
    fleet = _running(heard, [FIRST])
    fleet.head("a", "b")
    fleet.step()
    assert fleet.gate.waiting == {"b": Waiting()}


def test_with_nobody_there_nothing_opens() -> None:
    fleet = _running()
    fleet.live = set()
    fleet.head("a", "b")
    fleet.step()
    fleet.step(1000)
    assert fleet.gate.waiting == {"b": Waiting()}


def test_a_silent_canary_is_replaced_and_one_that_was_out_of_order_before_is_passed_over() -> None:
    fleet = _running()
    fleet.head("a", "b")
    fleet.step()
    fleet.live.discard(FIRST)
    fleet.step()
    assert fleet.let_in("b") == {NODES[1]}

    rollout = Rollout(soak_seconds=SOAK)
    fleet = _running(rollout)
    fleet.head("a", "b")
    broken = {n: _report(n, fleet.bundle, unloaded=["b"], ready=n != FIRST) for n in NODES}
    rollout.step(broken, 0)
    assert fleet.gate.canaries == (NODES[1],)


def test_a_canary_that_is_not_ready_with_the_policy_holds_it() -> None:
    fleet = _running()
    fleet.head("a", "b")
    fleet.step()
    fleet.install()
    reports = {n: _report(n, fleet.bundle, unloaded=() if n == FIRST else ("b",), ready=n != FIRST) for n in NODES}
    assert fleet.rollout.step(reports, 0) is None
    fleet.rollout.step(reports, 1000)
    assert fleet.let_in("b") == {FIRST}


def test_a_node_that_was_out_of_order_before_does_not_hold_its_stage() -> None:
    fleet = _running()
    fleet.head("a", "b")
    fleet.step()
    fleet.install()
    broken = NODES[1]
    reports = {n: _report(n, fleet.bundle, unloaded=() if n == FIRST else ("b",), ready=n != broken) for n in NODES}
    fleet.rollout.step(reports, 0)
    fleet.rollout.step(reports, SOAK)
    assert fleet.let_in("b") == IN_SHARE
    reports |= {n: _report(n, fleet.bundle) for n in IN_SHARE - {broken}}
    fleet.rollout.step(reports, SOAK)
    fleet.rollout.step(reports, 2 * SOAK)
    assert fleet.gate.waiting == {}


def test_a_stage_that_lets_nobody_in_costs_no_soak() -> None:
    outside = [n for n in NODES if n not in IN_SHARE][:2]
    fleet = _running(nodes=outside)
    fleet.head("a", "b")
    fleet.step()
    assert len(fleet.let_in("b")) == 1
    fleet.install()
    fleet.step()
    fleet.step(SOAK)
    assert fleet.gate.waiting == {}


def test_new_policies_all_the_time_hold_up_none_of_those_before() -> None:
    fleet = _running()
    for n in range(20):
        fleet.head("a", "b", f"c{n}")
        fleet.install()
        fleet.step(SOAK / 2)
    assert "b" not in fleet.gate.waiting
    assert "c19" in fleet.gate.waiting


def test_edits_of_a_global_policy_all_the_time_do_not_begin_it_anew() -> None:
    fleet = _running()
    for n in range(20):
        fleet.head("a", f"http-{n}")
        fleet.install()
        fleet.step(SOAK / 2)
        if len(fleet.let_in(f"http-{n}")) == len(NODES):
            break
    else:
        raise AssertionError("it never reaches all")

    fleet = _running()
    fleet.head("a", "http-0")
    fleet.refused[FIRST].add("http-0")
    fleet.step()
    fleet.head("a", "http-1")
    assert fleet.gate.waiting == {"http-1": Waiting()}, "what comes after a refused one has proven nothing"


def test_a_rollback_is_open_to_all_and_what_follows_it_is_staged() -> None:
    fleet = _running()
    fleet.head("a", "b")
    fleet.step()
    fleet.head("a", "old", pinned=1)
    assert fleet.gate.waiting == {}
    fleet.head("a", "b")
    assert fleet.gate.waiting == {"b": Waiting()}
    fleet.head("a", "b", pinned=1)  # to the very content that is under way
    assert fleet.gate.waiting == {}


def test_a_restarted_compiler_goes_on_from_the_stored_gate() -> None:
    fleet = _running()
    fleet.head("a", "b")
    fleet.step()
    fleet.install()
    fleet.step()
    fleet.step(SOAK)
    stored = decode_gate(encode_gate(fleet.gate))
    assert stored.waiting["b"].percent == 25

    fleet.rollout = Rollout(soak_seconds=SOAK)
    fleet.rollout.resume(stored, fleet.scopes)
    fleet.step()
    assert fleet.gate == stored
    fleet.head("a", "b", "c")
    assert fleet.gate.waiting == {"b": Waiting(percent=25), "c": Waiting()}
    fleet.settle()
    assert fleet.gate.waiting == {}

    fleet.rollout = Rollout(soak_seconds=SOAK)
    fleet.rollout.resume(stored, {})  # its bundle is lost: everything of the next one counts as new
    fleet.head("a", "b", "d")
    assert fleet.gate.waiting == {"a": Waiting(), "b": Waiting(percent=25), "d": Waiting()}


def test_of_two_compilers_gates_what_either_let_in_stays() -> None:
    mine, other = _running(), _running()
    for fleet in (mine, other):
        fleet.head("a", "b", "c", "d")
        fleet.step()
    stored = replace(other.gate, canaries=("another",), waiting={"b": Waiting(percent=25), "c": Waiting(halted="x")})
    mine.rollout.merge(stored)
    assert mine.gate.waiting == {"b": Waiting(percent=25), "c": Waiting(halted="x")}
    assert mine.gate.canaries == ("another", FIRST)
    before = mine.gate
    mine.rollout.merge(replace(stored, policy_digest="of another bundle", waiting={}))
    assert mine.gate == before


def test_a_node_may_install_only_what_the_gate_of_this_bundle_lets_in_and_keeps_what_it_runs() -> None:
    def bundle(*hashes: str) -> PolicyBundle:
        return PolicyBundle(policies=tuple(Policy(hash=h, scope="location", text="") for h in hashes))

    gate = Gate(group="g", epoch=1, number=1, policy_digest="d", canaries=("n",), waiting={"b": Waiting(), "c": Waiting(percent=100)})
    assert held_back(bundle("a", "b", "c"), "d", bundle(), gate, "n") == frozenset()
    assert held_back(bundle("a", "b", "c"), "d", bundle(), gate, "m") == {"b"}
    assert held_back(bundle("a", "b", "c"), "d", bundle("b"), gate, "m") == frozenset()
    assert held_back(bundle("a", "b"), "another", bundle("a"), gate, "n") == {"b"}
    assert held_back(bundle("a", "b"), "d", bundle("a"), None, "n") == {"b"}

    zones = PolicyBundle(policies=(*bundle("a", "c").policies, Policy(hash="b", scope="http", text="")))
    assert held_back(zones, "d", bundle("a"), gate, "m") == {"b", "c"}, "c may need what b has"
    halted = replace(gate, waiting={"b": Waiting(halted="n")})
    assert held_back(zones, "d", bundle("a"), halted, "m") == {"b"}
    assert held_back(zones, "d", bundle("b"), gate, "m") == frozenset()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("head"), st.frozensets(st.sampled_from("abcd"), min_size=1)),
        st.tuples(st.just("install"), st.frozensets(st.sampled_from("abcd"), max_size=1)),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 1.0, SOAK])),
        st.tuples(st.just("silent"), st.sampled_from(NODES)),
        st.tuples(st.just("back"), st.sampled_from(NODES)),
        st.tuples(st.just("restart"), st.none()),
    ),
    max_size=40,
)


@given(STEPS)
def test_nobody_is_ever_shut_out_again_no_refused_policy_goes_further_and_it_ends_at_all(steps: list[tuple[str, object]]) -> None:
    fleet = _running()
    for what, value in steps:
        before, policies = fleet.gate, fleet.policies
        refused = {p for p in policies if any(p in fleet.refused[n] for n in fleet.live)}
        if what == "head" and isinstance(value, frozenset):
            fleet.head(*value)
            before = fleet.gate
        elif what == "install" and isinstance(value, frozenset):
            fleet.install(refuse=value)
            refused = {p for p in policies if any(p in fleet.refused[n] for n in fleet.live)}
        elif what == "silent":
            fleet.live.discard(str(value))
        elif what == "back":
            fleet.live.add(str(value))
        elif what == "restart":
            fleet.rollout = Rollout(soak_seconds=SOAK)
            fleet.rollout.resume(before, fleet.scopes)
        fleet.step(value if isinstance(value, float) else 0.0)
        for policy, waiting in before.waiting.items():
            after = fleet.gate.waiting.get(policy)
            assert after is None or all(lets_in(fleet.gate, n, after) for n in NODES if lets_in(before, n, waiting))
            if policy in refused & {p for n in fleet.live for p in fleet.refused[n]}:
                assert after is not None and after.percent == waiting.percent and after.halted
    for node in NODES:
        fleet.refused[node].clear()
        fleet.live.add(node)
        fleet.loaded[node] |= {p for p, w in fleet.gate.waiting.items() if w.halted}  # mended
    fleet.step()
    fleet.settle()
    assert fleet.gate.waiting == {}
