"""Each attack of one bad tenant, or of a stranger, as a function of the place and a size.

It returns what the attacker met in a few words, and raises `NotRefused` if he got through.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from hostile.place import Place, Size

from . import (
    assertions,
    denials,
    gateway_certificate,
    hang_ups,
    memory_share,
    ops_host,
    small_frames,
    sockets,
    status_floods,
    write_only_key,
)

Attack = Callable[[Place, Size], Awaitable[str]]

ATTACKS: Final[Mapping[str, Attack]] = {
    "register, delete, renew": denials.changes_until_refused,
    "denials in the database": denials.many_denials,
    "CREDIT of one byte": small_frames.credits_of_one_byte,
    "DATA of one byte": small_frames.data_of_one_byte,
    "frames after RESET": small_frames.frames_after_reset,
    "STATUS of 16 KiB": status_floods.on_many_links,
    "hang-ups, silent agent": hang_ups.at_a_silent_agent,
    "hang-ups, silent model server": hang_ups.at_a_silent_model_server,
    "sockets, public port": sockets.at_the_public_port,
    "sockets, other listeners": sockets.at_the_other_listeners,
    "key to a new address": write_only_key.change_the_address,
    "wrong assertions": assertions.by_a_stranger,
    "more than a memory share": memory_share.one_request,
    "Host of another page": ops_host.of_another_page,
    "stolen certificate, revoked": gateway_certificate.removed,
    "stolen certificate, TRUST": gateway_certificate.poisoned_trust,
}
