"""What an attacker has whose agent has joined: its keys, and the gateway's endpoints for agents."""

import asyncio
import time
from pathlib import Path
from typing import Final

from byoai_agent.control import RENEW, TOKEN, Gateway, GatewayRefused
from byoai_agent.state import StateDirectory
from byoai_shared.assertion import sign_assertion
from byoai_shared.enrolment import RenewRequest, TokenRequest
from byoai_shared.identity import AgentIdentity
from byoai_shared.keys import key_from_pem, key_to_pem, make_csr, new_key
from byoai_shared.tls import Credentials

BUSY_S: Final = 120.0
AGAIN_S: Final = 0.5


class Account:
    """What an agent that has joined can ask of the gateway."""

    def __init__(self, directory: Path) -> None:
        state = StateDirectory(directory)
        self.membership = state.membership()
        self.identity = AgentIdentity(self.membership.tunnel_id, self.membership.agent_id)
        self.gateway = Gateway(self.membership.gateway_url)
        self.credentials = Credentials(state.link().certificate_pem, state.link().key_pem)
        self.key = key_from_pem(state.link().key_pem)

    def assertion(self, path: str) -> str:
        """Sign an assertion for one of the gateway's endpoints with the present key."""
        audience = self.gateway.endpoint(path)
        return sign_assertion(
            identity=self.identity, key=self.key, audience=audience, now=time.time()
        )

    async def token(self) -> str:
        """Fetch a tunnel token; again, as agents do, while the gateway's database is busy."""
        async with asyncio.timeout(BUSY_S):
            while True:
                try:
                    request = TokenRequest(assertion=self.assertion(TOKEN))
                    return (await self.gateway.token(request)).token
                except GatewayRefused as refused:
                    if refused.status != 503:
                        raise
                await asyncio.sleep(AGAIN_S)

    async def renew(self) -> None:
        """Get a certificate for a new key; the old one is remembered by the gateway."""
        key = new_key()
        csr = make_csr(key).decode("ascii")
        request = RenewRequest(assertion=self.assertion(RENEW), csr_pem=csr)
        answer = await self.gateway.renew(request)
        self.key = key
        self.credentials = Credentials(answer.certificate_pem.encode(), key_to_pem(key))
