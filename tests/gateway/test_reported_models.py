"""What the reports of a tunnel's agents say of its models."""

from byoai_gateway.reported_models import reported, reports
from byoai_shared.protocol.control import Status, UpstreamHealth


def status(*models: str, health: UpstreamHealth = UpstreamHealth.HEALTHY) -> Status:
    return Status(models=models, health=health)


def test_every_name_counts_once_in_the_order_of_the_agents() -> None:
    heard = {"b": status("y", "x"), "a": status("x", "z")}
    offer = reported(reports(heard), "registered")
    assert (offer.names, offer.is_complete) == (("x", "z", "y"), True)
    assert offer.stand_in == "registered"
    assert reported(reports(dict(reversed(heard.items()))), "registered") == offer


def test_a_model_server_that_answers_comes_before_one_that_is_down() -> None:
    heard = {"a": status("x", health=UpstreamHealth.DOWN), "b": status("y")}
    assert reported(reports(heard), "registered").names == ("y", "x")


def test_no_agent_or_one_that_reports_nothing_leaves_the_list_open() -> None:
    assert not reported(reports({}), "registered").is_complete
    assert not reported(reports({"a": status("x"), "b": status()}), "registered").is_complete


def test_a_report_that_may_be_cut_leaves_the_list_open() -> None:
    names = [f"m{number}" for number in range(64)]
    assert not reported(reports({"a": status(*names)}), "registered").is_complete
    assert reported(reports({"a": status(*names[1:])}), "r").is_complete
    long = status(*(f"{number:0200}" for number in range(50)))
    assert not reported(reports({"a": long}), "registered").is_complete


def test_names_that_no_request_can_give_are_left_out() -> None:
    heard = {"a": status("x" * 201, "a\nb", "fine")}
    assert reported(reports(heard), "registered").names == ("fine",)
