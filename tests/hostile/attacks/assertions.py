"""A stranger who knows an agent's name sends assertions that the agent did not sign."""

import time

from byoai_agent.control import TOKEN, GatewayRefused
from byoai_shared.assertion import sign_assertion
from byoai_shared.enrolment import TokenRequest
from byoai_shared.keys import new_key
from hostile.place import NotRefused, Place, Size


async def by_a_stranger(place: Place, size: Size) -> str:
    """Name an agent whose keys the gateway remembers; print what each costs the gateway."""
    account, key = place.account, new_key()
    before_s = place.gateway_cpu_s()
    for _ in range(size.assertions):
        assertion = sign_assertion(
            identity=account.identity,
            key=key,
            audience=account.gateway.endpoint(TOKEN),
            now=time.time(),
        )
        try:
            await account.gateway.token(TokenRequest(assertion=assertion))
        except GatewayRefused as refused:
            if refused.status not in {401, 403, 429}:
                raise
        else:
            raise NotRefused("a stranger's assertion was taken")
    cost_ms = (place.gateway_cpu_s() - before_s) / size.assertions * 1000
    return f"{size.assertions:,} refused; gateway CPU meanwhile {cost_ms:.1f} ms for each"
