"""Who is here, and who is told."""

from byoai_relay.directory import (
    MAX_TUNNEL_STATUS_BYTES,
    MIN_STATUS_BYTES,
    AgentEntry,
    Directory,
)
from byoai_relay.port import Leg, Port, SwitchLimits
from byoai_relay.switch import Switch
from byoai_shared.protocol.control import (
    MAX_ROUND_TRIP_US,
    PresenceState,
    Role,
    Status,
    encode_control,
    fit_status,
)
from support.transcript import hello


class Watched(Port):
    """A port that counts how often anything of it is looked at."""

    looks = 0

    def __getattribute__(self, name: str) -> object:
        Watched.looks += 1
        return super().__getattribute__(name)


class House:
    def __init__(self) -> None:
        self.directory = Directory()
        self._switch = Switch(SwitchLimits(), self.directory)

    def port(self, tunnel_id: str = "", name: str = "g", make: type[Port] = Port) -> Port:
        role = Role.AGENT if tunnel_id else Role.GATEWAY
        port = make(
            self._switch,
            hello(Role.RELAY),
            wake=lambda: None,
            now=0.0,
            expected=(role, name),
            tunnel_id=tunnel_id,
        )
        self.directory.add_port(port)
        return port

    def entry(self, tunnel_id: str = "t", agent_id: str = "a", *, epoch: int = 1) -> AgentEntry:
        return AgentEntry(
            port=self.port(tunnel_id, agent_id),
            tunnel_id=tunnel_id,
            agent_id=agent_id,
            instance="run-1",
            epoch=epoch,
            accepted_until=900,
            status=Status(models=("m",)),
        )


def test_an_agent_is_found_from_when_it_is_listed_until_it_is_not() -> None:
    house = House()
    entry = house.entry()
    assert house.directory.choose("t") is None
    assert house.directory.enlist(entry) is None
    assert house.directory.choose("t") is entry.port
    assert house.directory.entry(entry.port) is entry
    assert house.directory.current("t", "a") is entry
    assert list(house.directory.agents()) == [entry]
    assert house.directory.delist(entry.port) is entry
    assert house.directory.delist(entry.port) is None
    assert house.directory.choose("t") is None
    assert entry.port in set(house.directory.all_ports())


def test_a_newer_link_of_an_agent_takes_the_place_of_the_old_one() -> None:
    house = House()
    old, new = house.entry(epoch=1), house.entry(epoch=2)
    house.directory.enlist(old)
    assert house.directory.enlist(new) is old
    assert house.directory.choose("t") is new.port
    # The end of the old link takes nothing from the new one.
    assert house.directory.remove_port(old.port) is None
    assert house.directory.choose("t") is new.port
    assert house.directory.remove_port(new.port) is new
    assert house.directory.choose("t") is None


def test_the_same_link_may_be_listed_again_with_a_new_token() -> None:
    house = House()
    entry = house.entry()
    house.directory.enlist(entry)
    assert house.directory.enlist(entry) is None
    assert list(house.directory.agents()) == [entry]


def test_the_least_busy_agent_of_a_tunnel_is_chosen() -> None:
    house = House()
    busy, idle, elsewhere = house.entry("t", "a1"), house.entry("t", "a2"), house.entry("u", "a3")
    for entry in (busy, idle, elsewhere):
        house.directory.enlist(entry)
    busy.port.legs[1] = Leg(busy.port, 1)
    assert house.directory.choose("t") is idle.port
    assert house.directory.choose("u") is elsewhere.port
    house.directory.remove_port(idle.port)
    assert house.directory.choose("t") is busy.port


def test_the_agent_that_is_named_is_chosen_however_busy_and_no_other() -> None:
    house = House()
    busy, idle, elsewhere = house.entry("t", "a1"), house.entry("t", "a2"), house.entry("u", "a3")
    for entry in (busy, idle, elsewhere):
        house.directory.enlist(entry)
    busy.port.legs[1] = Leg(busy.port, 1)
    assert house.directory.choose("t", "a1") is busy.port
    assert house.directory.choose("t", "a3") is None, "it belongs to another tunnel"
    house.directory.remove_port(busy.port)
    assert house.directory.choose("t", "a1") is None


def test_gateways_are_those_that_have_introduced_themselves() -> None:
    house = House()
    silent, here, agent = house.port(), house.port(name="g2"), house.port("t", "a")
    for port, role in ((here, Role.GATEWAY), (agent, Role.AGENT)):
        port.peer = hello(role)
    assert silent in set(house.directory.all_ports())
    assert list(house.directory.gateways()) == [here]
    house.directory.remove_port(here)
    assert list(house.directory.gateways()) == []


def test_to_find_the_gateways_takes_no_look_at_the_agents_links() -> None:
    """There are thousands of those, and each report of an agent goes to all gateways."""
    house = House()
    for name in ("a1", "a2"):
        house.port("t", name, Watched).peer = hello(Role.AGENT)
    gateway = house.port()
    gateway.peer = hello(Role.GATEWAY)
    before = Watched.looks
    assert list(house.directory.gateways()) == [gateway]
    assert Watched.looks == before


def test_presence_says_what_gateways_need() -> None:
    house = House()
    entry = house.entry()
    presence = entry.presence(PresenceState.ONLINE)
    assert (presence.tunnel_id, presence.agent_id, presence.epoch) == ("t", "a", 1)
    assert (presence.round_trip_us, presence.accepted_until) == (None, 900)
    entry.port.round_trip.smoothed_s = 0.0123
    assert entry.presence(PresenceState.CHANGED).round_trip_us == 12_300
    entry.port.round_trip.smoothed_s = 1e9
    assert entry.presence(PresenceState.CHANGED).round_trip_us == MAX_ROUND_TRIP_US


def test_presence_of_an_agent_that_is_gone_has_no_status() -> None:
    entry = House().entry()
    assert entry.presence(PresenceState.CHANGED).status == Status(models=("m",))
    assert entry.presence(PresenceState.GONE).status == Status()


def test_what_agents_of_a_tunnel_report_is_cut_where_it_is_too_much_in_all() -> None:
    house = House()
    large = fit_status(Status(models=tuple(f"{n:03}" + "m" * 197 for n in range(100))))
    entries = [house.entry("t", f"a{number}") for number in range(12)]
    for entry in entries:
        house.directory.enlist(entry)
    taken = [house.directory.set_status(entry, large) for entry in entries]
    assert taken == [True] * 8 + [False] * 4
    assert all(entry.status_bytes == len(encode_control(entry.status)) for entry in entries)
    assert sum(entry.status_bytes for entry in entries) <= (
        MAX_TUNNEL_STATUS_BYTES + 4 * MIN_STATUS_BYTES
    )
    assert all(0 < len(entry.status.models) < 78 for entry in entries[8:])
    # Nothing of this is another tunnel's affair, and an agent that left makes room.
    other = house.entry("u", "a1")
    house.directory.enlist(other)
    assert house.directory.set_status(other, large)
    house.directory.remove_port(entries[0].port)
    assert house.directory.set_status(entries[8], large)
    assert house.directory.set_status(entries[8], large)
