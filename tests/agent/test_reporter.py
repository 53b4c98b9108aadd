import io
from collections.abc import Callable

import pytest
from rich.console import Console

from byoai_agent.reporter import Reporter, delay_in_words

RELAY = "wss://relay.example:443"


def said(say: Callable[[Reporter], None]) -> str:
    stream = io.StringIO()
    say(Reporter(Console(file=stream, width=400)))
    return " ".join(stream.getvalue().split())


SENTENCES: list[tuple[Callable[[Reporter], None], str]] = [
    (lambda r: r.starting("t1", "alice"), "agent for tunnel t1 of alice starts"),
    (lambda r: r.starting("t1", ""), "agent for tunnel t1 starts"),
    (lambda r: r.connected(RELAY), f"connected to {RELAY}"),
    (lambda r: r.ready(), "ready: requests for this tunnel are answered here"),
    (
        lambda r: r.unreachable(RELAY, "no answer in time", 12.4),
        "no answer in time; trying again in 12 s",
    ),
    (lambda r: r.lost(RELAY, "link lost", 0.2), "link lost; connecting again in a second"),
    (
        lambda r: r.moving(RELAY, ""),
        f"{RELAY} asks to connect elsewhere (draining); doing so",
    ),
    (lambda r: r.certificate_refused(RELAY), "(byoai-agent join CODE --replace)"),
    (
        lambda r: r.token_not_renewed(RELAY, "relay clock differs by about 3600 s"),
        f"{RELAY} refused the renewed token: relay clock differs by about 3600 s. The link works",
    ),
    (lambda r: r.renewal_failed(OSError("away"), 30), "away; asking again in 30 s"),
    (lambda r: r.clock_is_wrong(90.0), "this host's clock is 90 s slow"),
    (lambda r: r.clock_is_wrong(-90.0), "this host's clock is 90 s fast"),
    (lambda r: r.upstreams(["http://x: 2 models"]), "http://x: 2 models"),
    (lambda r: r.upstreams([], ["http://x: nobody listens"]), "! http://x: nobody listens; its"),
    (lambda r: r.upstreams([]), "no model server answers on this host"),
    (lambda r: r.stopping(0, 10), "stopping"),
    (lambda r: r.stopping(2, 10), "stopping; running answers (2) get 10 s to finish"),
    (lambda r: r.ended("the tunnel was revoked"), "the tunnel was revoked"),
]


@pytest.mark.parametrize(("say", "sentence"), SENTENCES)
def test_sentences(say: Callable[[Reporter], None], sentence: str) -> None:
    assert sentence in said(say)


def test_what_comes_from_elsewhere_is_not_taken_for_markup() -> None:
    assert "[bold]x[/]" in said(lambda r: r.ended("[bold]x[/]"))


@pytest.mark.parametrize(
    ("delay_s", "words"), [(0.0, "a second"), (1.4, "a second"), (1.6, "2 s"), (59.7, "60 s")]
)
def test_delays_in_words(delay_s: float, words: str) -> None:
    assert delay_in_words(delay_s) == words
