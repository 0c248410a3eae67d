"""The webhook over real HTTPS, with a compiler that answers, denies, is slow or silent."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil
import pytest

from services.shared.bus.port import BusUnavailable, NoAnswer, TooLarge
from services.shared.contracts import subjects
from services.shared.contracts.problem import Problem, Reason
from services.shared.contracts.question import AdmissionAnswer, AdmissionQuestion
from services.webhook import service
from services.webhook.bounds import MAX_BODY_BYTES
from services.webhook.certificate import CertificatePaths, make_certificate
from services.webhook.options import WebhookOptions
from tests.support.nats import free_port
from tests.support.reviews import ingress, review

Answer = Callable[[AdmissionQuestion], Awaitable[AdmissionAnswer]]


class Compiler:
    """The bus as the webhook sees it, and the compiler behind it."""

    def __init__(self) -> None:
        self.connected = True
        self.questions: list[AdmissionQuestion] = []
        self.answer: Answer = self.allow

    async def allow(self, question: AdmissionQuestion) -> AdmissionAnswer:
        return AdmissionAnswer(allowed=True)

    async def never(self, question: AdmissionQuestion) -> AdmissionAnswer:
        await asyncio.Event().wait()
        raise AssertionError

    async def request(self, subject: str, payload: bytes, *, timeout: float, headers: Mapping[str, str] | None = None) -> bytes:
        assert subject == subjects.of_group(subjects.ASK_COMPILER_ADMIT, "default")
        question = msgspec.json.decode(payload, type=AdmissionQuestion)
        self.questions.append(question)
        try:
            async with asyncio.timeout(timeout):
                return msgspec.json.encode(await self.answer(question))
        except TimeoutError as error:
            raise NoAnswer("deadline") from error


class Webhook:
    def __init__(self, compiler: Compiler, options: WebhookOptions, paths: CertificatePaths) -> None:
        self.compiler = compiler
        self.options = options
        self.paths = paths
        self.url = f"https://127.0.0.1:{options.port}/networking/v1/ingresses"

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.paths.ca))

    async def post(self, body: Any, **kwargs: Any) -> tuple[int, Any]:
        """(status, decoded JSON or text)."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session() as session, session.post(self.url, data=io.BytesIO(data), **kwargs) as response:
            text = await response.text()
            return response.status, json.loads(text) if response.content_type == "application/json" else text

    async def response(self, body: Any) -> dict[str, Any]:
        status, answer = await self.post(body)
        assert status == 200, answer
        assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
        response: dict[str, Any] = answer["response"]
        return response

    def session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self.context(), force_close=True))

    async def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.options.port, ssl=self.context(), server_hostname="localhost")

    async def metric(self, name: str) -> float:
        async with self.session() as session, session.get(f"https://127.0.0.1:{self.options.port}/metrics") as response:
            lines = (await response.text()).splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@contextlib.asynccontextmanager
async def running(paths: CertificatePaths, **changes: Any) -> AsyncIterator[Webhook]:
    options = WebhookOptions(certificate=paths.certificate, key=paths.key, host="127.0.0.1", port=free_port())
    options = msgspec.structs.replace(options, deadline_seconds=0.3, read_seconds=1.0, certificate_check_seconds=0.02, **changes)
    webhook, stop = Webhook(Compiler(), options, paths), asyncio.Event()
    task = asyncio.ensure_future(service.run(webhook.compiler, options, stop))
    try:
        while not task.done():
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", options.port)
                writer.close()
                break
            await asyncio.sleep(0.005)
        yield webhook
    finally:
        stop.set()
        await task


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> CertificatePaths:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
async def webhook(paths: CertificatePaths) -> AsyncIterator[Webhook]:
    async with running(paths) as started:
        yield started


async def test_what_the_compiler_accepts_is_allowed_and_the_uid_returned(webhook: Webhook) -> None:
    asked = review(ingress(managedFields=[{"manager": "kubectl"}]) | {"status": {"loadBalancer": {}}})

    assert await webhook.response(asked) == {"uid": asked["request"]["uid"], "allowed": True}

    (question,) = webhook.compiler.questions
    assert (question.namespace, question.name, question.operation) == ("default", "shop", "CREATE")
    assert question.object == ingress()


async def test_a_denial_names_everything_that_is_wrong(webhook: Webhook) -> None:
    async def deny(_: AdmissionQuestion) -> AdmissionAnswer:
        problems = (
            Problem(reason=Reason.INVALID_HOST, field="spec.rules[0].host", message="not a host", example="shop.example"),
            Problem(reason=Reason.PATH_CONFLICT, field="spec.rules[0].http.paths[0]", message="owned by default/old"),
        )
        warning = Problem(reason=Reason.NOT_HONOURED, field="metadata.annotations[x]", message="has no effect", severity="warning")
        return AdmissionAnswer(allowed=False, problems=problems, warnings=(warning,))

    webhook.compiler.answer = deny
    response = await webhook.response(review())

    assert response["allowed"] is False
    assert response["status"] == {
        "status": "Failure",
        "code": 400,
        "reason": "BadRequest",
        "message": "spec.rules[0].host: not a host; for example shop.example; spec.rules[0].http.paths[0]: owned by default/old",
    }
    assert response["warnings"] == ["metadata.annotations[x]: has no effect"]


async def test_warnings_come_with_an_allowed_object_and_are_short(webhook: Webhook) -> None:
    async def warn(_: AdmissionQuestion) -> AdmissionAnswer:
        warning = Problem(reason=Reason.UNKNOWN_ANNOTATION, field="metadata.annotations[x]", message="m" * 1_000, severity="warning")
        return AdmissionAnswer(allowed=True, warnings=(warning,) * 40)

    webhook.compiler.answer = warn
    response = await webhook.response(review())

    assert response["allowed"] is True
    assert len(response["warnings"]) == 16 and max(map(len, response["warnings"])) == 256


@pytest.mark.parametrize(
    "asked",
    [
        review(ingress(deletionTimestamp="2026-03-01T12:00:00Z") | {"spec": 7}),
        review({}, operation="DELETE", object=None),
        review({}, operation="CONNECT"),
    ],
)
async def test_what_goes_away_is_allowed_unseen(webhook: Webhook, asked: dict[str, Any]) -> None:
    assert (await webhook.response(asked))["allowed"] is True
    assert webhook.compiler.questions == []


async def test_any_path_is_answered_and_health_without_a_review(webhook: Webhook) -> None:
    base = f"https://127.0.0.1:{webhook.options.port}"
    async with webhook.session() as session:
        async with session.post(f"{base}/", json=review()) as response:
            assert response.status == 200
        async with session.get(f"{base}/healthz") as response:
            assert (response.status, await response.text()) == (200, "ok\n")
        async with session.get(f"{base}/other") as response:
            assert response.status == 404
        async with session.put(base, json=review()) as response:
            assert response.status == 405


# --- the compiler silent


async def test_a_silent_compiler_leaves_the_local_checks(webhook: Webhook) -> None:
    webhook.compiler.answer = webhook.compiler.never
    started = time.monotonic()

    good = await webhook.response(review())
    bad = await webhook.response(review(ingress() | {"spec": {"rules": [{"host": 7}]}}))

    assert good["allowed"] is True and "skipped" in good["warnings"][0]
    assert bad["allowed"] is False and bad["status"]["message"].startswith("spec.rules[0].host: ")
    assert time.monotonic() - started < 2 * webhook.options.deadline_seconds + 2
    assert await webhook.metric('sluice_webhook_reviews_total{result="allowed",by="local"}') == 1


async def test_without_a_bus_the_answer_comes_at_once(webhook: Webhook) -> None:
    webhook.compiler.connected = False

    assert "skipped" in (await webhook.response(review()))["warnings"][0]
    assert webhook.compiler.questions == []


async def test_errors_of_the_bus_and_a_garbled_answer_count_as_silence(webhook: Webhook) -> None:
    for failure in (BusUnavailable("x"), NoAnswer("x")):

        async def fail(_: AdmissionQuestion, failure: Exception = failure) -> AdmissionAnswer:
            raise failure

        webhook.compiler.answer = fail
        assert (await webhook.response(review()))["allowed"] is True

    async def garble(_: AdmissionQuestion) -> Any:
        return ["what"]

    webhook.compiler.answer = garble
    assert "skipped" in (await webhook.response(review()))["warnings"][0]


async def test_an_object_too_large_for_the_bus_is_denied(webhook: Webhook) -> None:
    async def refuse(_: AdmissionQuestion) -> AdmissionAnswer:
        raise TooLarge("x")

    webhook.compiler.answer = refuse
    response = await webhook.response(review())

    assert response["allowed"] is False and "bytes" in response["status"]["message"]


async def test_text_that_cannot_be_sent_on_is_denied(webhook: Webhook) -> None:
    body = json.dumps(review(ingress(annotations={"a": "@"}))).replace("@", "\\ud800").encode()

    assert (await webhook.response(body))["allowed"] is False


# --- not reviews


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (b'{"a": 1, "a": 1}', 400),
        (b"[" * 100_000, 400),
        (b"[" + b"[]," * 1_000_000 + b"1]", 400),
        (b'{"a": ' + b"9" * 2_000_000 + b"}", 400),
        ([], 500),
        ({"kind": "Pod"}, 500),
        (review() | {"apiVersion": "admission.k8s.io/v1beta1"}, 500),
        (review() | {"request": None}, 500),
        (review(uid=None), 500),
        (review(uid="\u001b[31m"), 500),
        (review(name="x\r\ny"), 500),
        (review(kind={"group": "networking.k8s.io", "version": "v1beta1", "kind": "Ingress"}), 500),
        (review(kind={"group": "", "version": "v1", "kind": "Pod"}), 500),
        (review(object=None), 500),
        (review(object="text"), 500),
    ],
)
async def test_what_is_not_a_review_of_an_ingress_is_refused(webhook: Webhook, body: Any, status: int) -> None:
    assert (await webhook.post(body))[0] == status
    assert (await webhook.response(review()))["allowed"] is True
    assert len(webhook.compiler.questions) == 1


async def test_a_body_beyond_the_bound_is_refused_by_its_length_and_while_it_comes(webhook: Webhook) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b" " * (MAX_BODY_BYTES // 60)

    with contextlib.suppress(aiohttp.ClientConnectionError):  # the server may close before all is sent
        assert (await webhook.post(b" " * (MAX_BODY_BYTES + 1)))[0] == 413
    with contextlib.suppress(aiohttp.ClientConnectionError):
        async with webhook.session() as session, session.post(webhook.url, data=chunks()) as response:
            assert response.status == 413

    assert await webhook.metric('sluice_webhook_refused_total{code="413"}') == 2


async def test_a_large_legal_review_passes(webhook: Webhook) -> None:
    rules = [{"host": f"h{n}.example", "http": {"paths": []}} for n in range(20_000)]

    assert (await webhook.response(review(ingress() | {"spec": {"rules": rules}})))["allowed"] is True


async def test_encoded_bodies_are_not_opened(webhook: Webhook) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    before = psutil.Process().memory_info().rss

    for encoding in ("gzip", "deflate", "br", "GZIP, identity"):
        assert (await webhook.post(bomb, headers={"Content-Encoding": encoding}))[0] == 415

    assert psutil.Process().memory_info().rss - before < 64 << 20


# --- clients that do not get on


async def closed(reader: asyncio.StreamReader) -> bytes:
    """What came until the server closed."""
    try:
        return await asyncio.wait_for(reader.read(), 10)
    except (ConnectionError, ssl.SSLError):
        return b""


async def test_a_slow_head_a_slow_body_and_a_silent_client_are_cut_and_others_go_on(webhook: Webhook) -> None:
    heads = [
        b"",
        b"POST /x HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
    ]
    connections = [await webhook.raw() for _ in range(10) for _ in heads]
    for (_, writer), head in zip(connections, heads * 10, strict=True):
        writer.write(head)

    assert (await webhook.response(review()))["allowed"] is True

    endings = await asyncio.gather(*(closed(reader) for reader, _ in connections))
    assert {ending[:12] for ending in endings} == {b"", b"HTTP/1.1 408"}
    for _, writer in connections:
        writer.close()


async def test_a_client_that_drips_bytes_is_cut(webhook: Webhook) -> None:
    reader, writer = await webhook.raw()
    ending = asyncio.ensure_future(closed(reader))
    writer.write(b"POST /x HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    with contextlib.suppress(ConnectionError):
        while not ending.done():
            writer.write(b"P")
            await writer.drain()
            await asyncio.wait([ending], timeout=0.02)

    assert await ending == b""
    writer.close()


async def test_a_kept_alive_connection_answers_again(webhook: Webhook) -> None:
    connector = aiohttp.TCPConnector(ssl=webhook.context(), limit=1)
    async with aiohttp.ClientSession(connector=connector) as session:
        for _ in range(3):
            async with session.post(webhook.url, json=review()) as response:
                assert response.status == 200


async def test_a_burst_is_shed_with_a_clear_message(webhook: Webhook) -> None:
    webhook.compiler.answer = webhook.compiler.never
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=webhook.context(), limit=0)) as session:

        async def one() -> tuple[int, str]:
            async with session.post(webhook.url, json=review()) as response:
                return response.status, await response.text()

        answers = await asyncio.gather(*(one() for _ in range(120)))

    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 503} and statuses.count(200) >= 64
    assert "too many reviews" in next(text for status, text in answers if status == 503)


async def test_many_large_bodies_at_once_take_bounded_memory(webhook: Webhook) -> None:
    body = json.dumps(review(ingress(annotations={"a": "x" * 2_900_000}))).encode()
    before = psutil.Process().memory_info().rss
    connections = [await webhook.raw() for _ in range(20)]
    for _, writer in connections:
        writer.write(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (len(body) + 10) + body)

    endings = await asyncio.gather(*(closed(reader) for reader, _ in connections))

    assert {ending[:12] for ending in endings} <= {b"", b"HTTP/1.1 408", b"HTTP/1.1 503"}
    # The client's own buffers are in this process, too: 20 bodies of 3 MB, sent and not yet sent.
    assert psutil.Process().memory_info().rss - before < (64 << 20) + 2 * 20 * len(body)
    for _, writer in connections:
        writer.close()


# --- TLS


async def test_old_tls_is_refused_and_http_2_not_offered(webhook: Webhook) -> None:
    context = webhook.context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    _, writer = await asyncio.open_connection("127.0.0.1", webhook.options.port, ssl=context, server_hostname="localhost")
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    writer.close()

    context = webhook.context()
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", webhook.options.port, ssl=context, server_hostname="localhost")


async def test_a_new_certificate_is_used_without_a_restart(tmp_path: Path) -> None:
    paths = make_certificate(tmp_path / "used")
    async with running(paths) as webhook:
        assert (await webhook.response(review()))["allowed"] is True

        renewed = make_certificate(tmp_path / "new", ("localhost", "127.0.0.1"))
        paths.ca.write_bytes(renewed.ca.read_bytes())
        paths.certificate.write_bytes(renewed.certificate.read_bytes())
        paths.key.write_bytes(renewed.key.read_bytes())
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                assert (await webhook.response(review()))["allowed"] is True
                break


async def test_only_clients_of_the_ca_get_past_the_handshake(tmp_path: Path, paths: CertificatePaths) -> None:
    api_server = make_certificate(tmp_path / "client", ("api",))
    async with running(paths, client_ca=api_server.ca) as webhook:
        with pytest.raises(aiohttp.ClientError):
            await webhook.post(review())
        assert webhook.compiler.questions == []


async def test_health_over_plain_http_but_no_reviews(paths: CertificatePaths) -> None:
    port = free_port()
    async with running(paths, health_port=port) as webhook, aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/healthz") as response:
            assert response.status == 200
        async with session.post(f"http://127.0.0.1:{port}/", json=review()) as response:
            assert response.status == 403
        assert webhook.compiler.questions == []


async def test_a_taken_port_is_an_error_of_the_start(webhook: Webhook) -> None:
    with pytest.raises(OSError, match="ddress already in use"):
        await service.run(webhook.compiler, webhook.options, asyncio.Event())
