"""`sluice certgen` against an API in memory: what is made, what is left alone, what is said."""

from __future__ import annotations

import base64
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from services.cli.certgen import command
from services.shared.kube.client import Api, ApiError
from services.webhook.certgen import CertgenError, Patch, Place, create, patch
from tests.support.fake_api import FakeApi

PLACE = Place(namespace="edge", secret="admission")
SECRET = "/api/v1/namespaces/edge/secrets/admission"
VALIDATING = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/admission"
MUTATING = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/admission"
SERVICE = "/apis/apiregistration.k8s.io/v1/apiservices/v1.example.com"


def data(api: FakeApi) -> dict[str, bytes]:
    return {name: base64.b64decode(value) for name, value in api.objects[SECRET]["data"].items()}


@pytest.fixture
def api() -> FakeApi:
    made = FakeApi()
    for path in (VALIDATING, MUTATING):
        made.put(path, {"webhooks": [{"name": n, "failurePolicy": "Ignore", "clientConfig": {"url": "https://x"}} for n in ("a", "b")]})
    made.put(SERVICE, {"spec": {"insecureSkipTLSVerify": True, "group": "example.com"}})
    return made


async def made(api: FakeApi, hosts: str = "admission,admission.edge.svc,10.0.0.1,::1", place: Place = PLACE) -> bool:
    return await create(api, place, hosts.split(","))  # type: ignore[arg-type]  # the one method that it uses


async def patched(api: FakeApi, place: Place = PLACE, **wanted: Any) -> None:
    await patch(api, place, Patch(**wanted))  # type: ignore[arg-type]


def policies(api: FakeApi, path: str) -> set[tuple[str, str]]:
    """(CA, failure policy) of all webhooks."""
    return {(w["clientConfig"].get("caBundle", ""), w["failurePolicy"]) for w in api.objects[path]["webhooks"]}


async def test_the_secret_has_what_the_webhook_reads_and_the_original_writes(api: FakeApi, tmp_path: Path) -> None:
    assert await made(api)
    found = data(api)
    assert set(found) == {"ca", "cert", "key"}
    assert found["key"].startswith(b"-----BEGIN EC PRIVATE KEY")
    key = load_pem_private_key(found["key"], None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)
    ca, certificate = x509.load_pem_x509_certificate(found["ca"]), x509.load_pem_x509_certificate(found["cert"])
    certificate.verify_directly_issued_by(ca)
    assert certificate.public_key() == key.public_key()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["admission", "admission.edge.svc"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "::1"]
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature and usage.key_encipherment and not usage.key_cert_sign
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign and not usage.key_encipherment
    for one in (ca, certificate):
        assert list(one.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
        assert one.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=4)
        assert one.not_valid_after_utc > datetime.now(UTC) + timedelta(days=36_000)
    for name in ("cert", "key"):
        (tmp_path / name).write_bytes(found[name])
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "cert", tmp_path / "key")


async def test_what_is_there_stays(api: FakeApi) -> None:
    await made(api)
    before = data(api)
    assert not await made(api, "other.example.com")
    assert data(api) == before
    assert [m for m, _, _ in api.requests].count("POST") == 1


async def test_other_keys_of_the_secret(api: FakeApi) -> None:
    place = Place(namespace="edge", secret="admission", ca_key="ca.crt", certificate_key="tls.crt", private_key="tls.key")
    await made(api, place=place)
    assert set(data(api)) == {"ca.crt", "tls.crt", "tls.key"}
    await patched(api, place, webhook="admission")
    assert {ca for ca, _ in policies(api, VALIDATING)} == {base64.b64encode(data(api)["ca.crt"]).decode()}


async def test_a_secret_of_somebody_else_is_an_error(api: FakeApi) -> None:
    api.put(SECRET, {"data": {"tls.crt": "eA=="}})
    with pytest.raises(CertgenError, match="no key `ca`"):
        await made(api)
    with pytest.raises(CertgenError, match="no key `ca`"):
        await patched(api, webhook="admission")


async def test_another_job_may_make_it_at_the_same_time(api: FakeApi) -> None:
    def other(method: str, path: str) -> Exception | None:
        if method == "POST":
            api.put(SECRET, {"data": {"ca": "eA=="}})
        return None

    api.fail = other
    assert not await made(api)
    assert data(api) == {"ca": b"x"}


@pytest.mark.parametrize("hosts", ["", " , ", "admission,bad host", "a/b", "-x"])
async def test_names_that_are_none_are_refused_at_once(api: FakeApi, hosts: str) -> None:
    with pytest.raises(CertgenError, match="--host"):
        await made(api, hosts)
    assert SECRET not in api.objects


async def test_every_webhook_of_both_kinds_gets_the_ca_and_again_changes_nothing(api: FakeApi) -> None:
    await made(api)
    ca = base64.b64encode(data(api)["ca"]).decode()
    await patched(api, webhook="admission", failure_policy="Fail", api_service="v1.example.com")
    assert policies(api, VALIDATING) == policies(api, MUTATING) == {(ca, "Fail")}
    assert api.objects[SERVICE]["spec"] == {"insecureSkipTLSVerify": False, "group": "example.com", "caBundle": ca}
    assert api.objects[VALIDATING]["webhooks"][0]["clientConfig"]["url"] == "https://x"
    await patched(api, webhook="admission", failure_policy="Fail", api_service="v1.example.com")
    assert policies(api, VALIDATING) == {(ca, "Fail")}


async def test_the_failure_policy_stays_where_none_is_given_and_ignore_is_written(api: FakeApi) -> None:
    await made(api)
    await patched(api, webhook="admission", mutating=False)
    assert {p for _, p in policies(api, VALIDATING)} == {"Ignore"}
    assert policies(api, MUTATING) == {("", "Ignore")}
    await patched(api, webhook="admission", failure_policy="Fail")
    await patched(api, webhook="admission", failure_policy="Ignore")
    assert {p for _, p in policies(api, VALIDATING)} == {"Ignore"}


async def test_without_a_name_no_webhook_is_touched(api: FakeApi) -> None:
    await made(api)
    before = dict(api.objects)
    await patched(api)
    assert api.objects == before


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"validating": False, "mutating": False}, "nothing to patch"),
        ({"failure_policy": "Maybe"}, "Ignore or Fail"),
        ({"validating": False, "mutating": False, "api_service": "x", "failure_policy": "Fail"}, "needs --patch-validating"),
        ({"webhook": "admission"}, "certgen create"),
    ],
)
async def test_what_cannot_be_done_is_said(api: FakeApi, wanted: dict[str, Any], said: str) -> None:
    with pytest.raises(CertgenError, match=said):
        await patched(api, **wanted)


async def test_a_webhook_that_is_not_there_is_an_error(api: FakeApi) -> None:
    await made(api)
    with pytest.raises(ApiError, match="NotFound"):
        await patched(api, webhook="other")


async def test_somebody_who_writes_in_between_is_not_overwritten(api: FakeApi) -> None:
    await made(api)
    rounds = 0

    def other(method: str, path: str) -> Exception | None:
        nonlocal rounds
        if method == "PUT" and path == VALIDATING and rounds < 2:
            rounds += 1
            obj = api.objects[VALIDATING]
            api.put(VALIDATING, obj | {"webhooks": [w | {"timeoutSeconds": rounds} for w in obj["webhooks"]]})
        return None

    api.fail = other
    await patched(api, webhook="admission", mutating=False, failure_policy="Fail")
    assert [w["timeoutSeconds"] for w in api.objects[VALIDATING]["webhooks"]] == [2, 2]
    assert {p for _, p in policies(api, VALIDATING)} == {"Fail"}


# --- the command line


@pytest.fixture
def run(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> Any:
    async def connect(kubeconfig: Path | None = None, context: str = "") -> FakeApi:
        api.requests.append(("CONNECT", str(kubeconfig), None))
        return api

    async def close() -> None: ...

    monkeypatch.setattr(Api, "connect", connect)
    monkeypatch.setattr(api, "close", close, raising=False)
    return lambda *arguments: CliRunner().invoke(command, arguments)


COMMON = ("--namespace=edge", "--secret-name=admission")


def test_the_charts_command_lines_work_with_its_global_flags_anywhere(api: FakeApi, run: Any, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("")
    done = run(
        "create", "--host=admission,admission.edge.svc", *COMMON, "--log-level=debug", "--log-format", "text", "--kubeconfig", str(config)
    )
    assert done.exit_code == 0, done.output
    assert api.requests[0] == ("CONNECT", str(config), None)
    assert set(data(api)) == {"ca", "cert", "key"}
    done = run("patch", "--webhook-name=admission", *COMMON, "--patch-mutating=false", "--patch-failure-policy=Fail")
    assert done.exit_code == 0, done.output
    assert ("CONNECT", "None", None) in api.requests, "without --kubeconfig: as the pod"
    assert {p for _, p in policies(api, VALIDATING)} == {"Fail"}
    assert policies(api, MUTATING) == {("", "Ignore")}


@pytest.mark.parametrize(("flag", "touched"), [("--patch-mutating", True), ("--patch-mutating=F", False), ("--patch-mutating=1", True)])
def test_booleans_are_gos(api: FakeApi, run: Any, flag: str, touched: bool) -> None:
    run("create", "--host=admission", *COMMON)
    done = run("patch", "--webhook-name=admission", flag, *COMMON)
    assert done.exit_code == 0, done.output
    assert ("" not in {ca for ca, _ in policies(api, MUTATING)}) is touched


@pytest.mark.parametrize("arguments", [("create", *COMMON), ("create", "--host=a", "--namespace=edge"), ("patch", "--namespace=edge")])
def test_what_is_required(run: Any, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 1
    assert "Missing option" in done.output


@pytest.mark.parametrize("flag", ["--log-level", "--log-format"])
@pytest.mark.parametrize("first", [True, False])
def test_log_flags_that_are_none(run: Any, flag: str, first: bool) -> None:
    create = ("create", *COMMON, "--host=a")
    done = run(f"{flag}=bogus", *create) if first else run(*create, f"{flag}=bogus")
    assert done.exit_code == 1
    assert flag in done.output and "bogus" in done.output and ("debug" in done.output or "json" in done.output)


def test_the_log_level_counts_wherever_it_stands(api: FakeApi, run: Any) -> None:
    create = ("create", *COMMON, "--host=a")
    assert "made" in run(*create).stderr
    del api.objects[SECRET]
    assert "made" not in run("--log-level=WARN", *create).stderr
    del api.objects[SECRET]
    assert "made" not in run("--log-level=info", *create, "--log-level=fatal").stderr


def test_version(run: Any) -> None:
    done = run("version", "--log-level=info")
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.output.splitlines()] == ["sluice", "Python"]


@pytest.mark.parametrize("arguments", [(), ("nope",), ("--nope",)])
def test_without_a_sub_command_it_fails(run: Any, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 1


def test_an_error_is_one_sentence(run: Any) -> None:
    done = run("patch", *COMMON, "--webhook-name=admission")
    assert done.exit_code == 1
    assert "`sluice certgen create` makes it" in done.output
