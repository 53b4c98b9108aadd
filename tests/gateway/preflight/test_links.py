from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from byoai_gateway.config import ListenSection, RelaySection
from byoai_gateway.preflight.findings import Verdict
from byoai_gateway.preflight.links import check_certificates, check_relay
from byoai_shared.private_files import write_new_file
from support.internet import https, speaking_plainly
from support.provider import providing
from support.relays import relaying


async def test_a_relay_that_answers(tmp_path: Path) -> None:
    async with relaying(tmp_path) as rig:
        relay = RelaySection(address=rig.agents_url, gateway_address=rig.gateways_url)
        findings = await check_relay(relay)
    assert [(it.setting, it.verdict) for it in findings] == [
        ("relays.gateway_address", Verdict.OK),
        ("relays.address", Verdict.OK),
    ]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("wss://127.0.0.1:9", "refused"),
        ("wss://no-such-host.invalid:1", "does not resolve"),
    ],
)
async def test_a_relay_that_cannot_be_reached(address: str, message: str) -> None:
    findings = await check_relay(RelaySection(address=address, gateway_address=address))
    assert [it.verdict for it in findings] == [Verdict.FAILED, Verdict.WARNING]
    assert all(message in it.message and address in it.message for it in findings)


async def test_what_speaks_no_tls_is_no_relay() -> None:
    async with speaking_plainly() as port:
        address = f"wss://127.0.0.1:{port}"
        (finding, _) = await check_relay(RelaySection(address=address, gateway_address=address))
    assert "TLS handshake failed" in finding.message


async def test_what_is_somebody_else_is_no_relay() -> None:
    async with providing(https(trustme.CA(), "127.0.0.1")) as other:
        address = f"wss://127.0.0.1:{other.port}"
        (finding, _) = await check_relay(RelaySection(address=address, gateway_address=address))
    assert finding.verdict is Verdict.FAILED
    assert "not a relay" in finding.message


def files(directory: Path, days: float) -> ListenSection:
    """A certificate that is good for so many days from now."""
    made = trustme.CA().issue_cert(
        "gateway.example",
        not_before=datetime.now(UTC) - timedelta(days=400),
        not_after=datetime.now(UTC) + timedelta(days=days),
    )
    made.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
    write_new_file(directory / "key.pem", made.private_key_pem.bytes())
    return ListenSection(certificate=directory / "cert.pem", key=directory / "key.pem")


@pytest.mark.parametrize(
    ("days", "verdict"),
    [(100, Verdict.OK), (3, Verdict.WARNING), (-3, Verdict.FAILED)],
)
async def test_a_certificate_has_its_time(tmp_path: Path, days: float, verdict: Verdict) -> None:
    assert await check_certificates(ListenSection()) == ()
    (finding,) = await check_certificates(files(tmp_path, days))
    assert (finding.setting, finding.verdict) == ("listen.certificate", verdict)


async def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    section = files(tmp_path, 100)
    other = trustme.CA()
    other.issue_cert("x").private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    (finding,) = await check_certificates(section)
    assert finding.verdict is Verdict.FAILED
    assert "do not belong together" in finding.message
    (finding,) = await check_certificates(ListenSection(ca=tmp_path / "missing.pem"))
    assert (finding.setting, finding.verdict) == ("listen.ca", Verdict.FAILED)
    other.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (finding,) = await check_certificates(ListenSection(ca=tmp_path / "ca.pem"))
    assert (finding.setting, finding.verdict) == ("listen.ca", Verdict.OK)
