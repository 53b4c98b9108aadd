"""A gateway on HTTPS under a CA that no agent knows: the join code vouches for it."""

from pathlib import Path

import pytest
import trustme

from byoai_shared import joincode
from byoai_shared.private_files import write_new_file
from demo.processes import ProcessError
from demo.stack import HOST, HttpsFiles
from support.canaries import Canaries
from support.house import StackMaker
from support.model_server import FakeModelServer

pytestmark = pytest.mark.asyncio(loop_scope="session")


def https_files(directory: Path, name: str) -> HttpsFiles:
    """A fresh CA and a certificate of it."""
    ca = trustme.CA()
    server = ca.issue_cert(HOST)
    files = HttpsFiles(*(directory / f"{name}-{part}.pem" for part in ("cert", "key", "ca")))
    server.cert_chain_pems[0].write_to_path(str(files.certificate))
    write_new_file(files.key, server.private_key_pem.bytes())
    ca.cert_pem.write_to_path(str(files.ca))
    return files


async def test_an_agent_joins_and_comes_online(
    make_stack: StackMaker, model_server: FakeModelServer, canaries: Canaries, tmp_path: Path
) -> None:
    async with make_stack(https=https_files(tmp_path, "gateway")) as stack:
        assert stack.gateway_url.startswith("https://")
        tunnel = await stack.open_tunnel("alice", [model_server.url])
        canaries.add(tunnel.token, tunnel.join_code)
        assert await stack.is_online(tunnel)


async def test_an_agent_refuses_a_gateway_with_another_ca(
    make_stack: StackMaker, canaries: Canaries, tmp_path: Path
) -> None:
    """Somebody in between can show any certificate but not the one that the code names."""
    async with make_stack(https=https_files(tmp_path, "gateway")) as stack:
        tunnel = await stack.register("alice")
        canaries.add(tunnel.token, tunnel.join_code)
        code = joincode.decode(tunnel.join_code)
        assert code.ca_sha256 is not None
        forged = joincode.encode(
            joincode.JoinCode(code.gateway_url, code.tunnel_id, code.secret, bytes(32))
        )
        with pytest.raises(ProcessError, match="another CA"):
            await stack.join(forged, "agent", [])
