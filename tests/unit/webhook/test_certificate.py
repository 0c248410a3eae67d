"""The certificate that `sluice up` makes."""

from __future__ import annotations

import stat
from pathlib import Path

from cryptography import x509

from services.webhook.certificate import Reloader, make_certificate, server_context


def test_it_is_made_once_and_kept_while_it_is_good(tmp_path: Path) -> None:
    first = make_certificate(tmp_path / "c")
    content = first.certificate.read_bytes()

    assert make_certificate(tmp_path / "c").certificate.read_bytes() == content
    assert stat.S_IMODE(first.key.stat().st_mode) == 0o600


def test_it_is_made_anew_for_other_hosts_or_when_something_is_wrong_with_it(tmp_path: Path) -> None:
    first = make_certificate(tmp_path, ("localhost",)).certificate.read_bytes()
    second = make_certificate(tmp_path, ("localhost", "10.0.0.1")).certificate.read_bytes()
    assert second != first

    paths = make_certificate(tmp_path, ("localhost", "10.0.0.1"))
    for broken in (paths.key, paths.certificate, paths.ca):
        broken.write_text("junk")
        paths = make_certificate(tmp_path, ("localhost", "10.0.0.1"))
        certificate = x509.load_pem_x509_certificate(paths.certificate.read_bytes())
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(paths.ca.read_bytes()))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["localhost"]


def test_a_pair_that_does_not_fit_together_is_left_alone_until_it_does(tmp_path: Path) -> None:
    used, new = make_certificate(tmp_path / "used"), make_certificate(tmp_path / "new")
    reloader = Reloader(server_context(used.certificate, used.key), used.certificate, used.key)
    assert not reloader.check()

    used.certificate.write_bytes(new.certificate.read_bytes())
    assert not reloader.check()
    used.key.unlink()
    assert not reloader.check()
    used.key.write_bytes(new.key.read_bytes())
    assert reloader.check()
    assert not reloader.check()
