"""What the reports of a tunnel's agents say of its models."""

from byoai_gateway.reported_models import reported, reports
from byoai_shared.protocol.control import Presence, PresenceState, Status, UpstreamHealth


def presence(
    agent: str, *models: str, relay: str = "r1", health: UpstreamHealth = UpstreamHealth.HEALTHY
) -> tuple[str, Presence]:
    return relay, Presence(
        tunnel_id="t",
        agent_id=agent,
        instance="i",
        epoch=1,
        state=PresenceState.ONLINE,
        status=Status(models=models, health=health),
    )


def test_every_name_counts_once_in_the_order_of_the_agents() -> None:
    heard = [
        presence("b", "y", "x"),
        presence("a", "x", "z", relay="r2"),
        presence("a", "x", "z"),
    ]
    offer = reported(reports(heard), "registered")
    assert (offer.names, offer.is_complete) == (("x", "z", "y"), True)
    assert offer.stand_in == "registered"
    assert reported(reports(reversed(heard)), "registered") == offer


def test_a_model_server_that_answers_comes_before_one_that_is_down() -> None:
    heard = [presence("a", "x", health=UpstreamHealth.DOWN), presence("b", "y")]
    assert reported(reports(heard), "registered").names == ("y", "x")


def test_no_agent_or_one_that_reports_nothing_leaves_the_list_open() -> None:
    assert not reported(reports([]), "registered").is_complete
    assert not reported(reports([presence("a", "x"), presence("b")]), "registered").is_complete


def test_a_report_that_may_be_cut_leaves_the_list_open() -> None:
    full = [presence("a", *(f"m{number}" for number in range(64)))]
    assert not reported(reports(full), "registered").is_complete
    assert reported(reports([presence("a", *full[0][1].status.models[1:])]), "r").is_complete
    long = [presence("a", *(f"{number:0200}" for number in range(50)))]
    assert not reported(reports(long), "registered").is_complete


def test_names_that_no_request_can_give_are_left_out() -> None:
    heard = [presence("a", "x" * 201, "a\nb", "fine")]
    assert reported(reports(heard), "registered").names == ("fine",)
