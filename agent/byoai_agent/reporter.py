"""Tells a person at a terminal, or a log, what happens to the agent: one sentence a change.

The sentences live here together, so that they can be read, and tested, as a whole. Each says
what is, and if that is bad, what happens next or what to do.
"""

import time
from collections.abc import Sequence
from typing import Literal

from rich.console import Console

from byoai_shared.logs import get_logger

log = get_logger("agent")

Mood = Literal["good", "neutral", "bad"]
_MARKS: dict[Mood, str] = {"good": "[green]●[/]", "neutral": "[dim]·[/]", "bad": "[yellow]![/]"}


class Reporter:
    """Says things to a console, or writes them to the log when there is none."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console

    def starting(self, tunnel_id: str, owner: str) -> None:
        """The agent starts."""
        of = f" of {owner}" if owner else ""
        sentence = f"agent for tunnel {tunnel_id}{of} starts"
        self._say("agent.starting", "neutral", sentence, tunnel_id=tunnel_id)

    def connected(self, relay: str) -> None:
        """A link stands and its token was accepted."""
        self._say("link.connected", "good", f"connected to {relay}", relay=relay)

    def ready(self) -> None:
        """Requests can come: the first link of this run stands."""
        self._say("agent.ready", "good", "ready: requests for this tunnel are answered here")

    def unreachable(self, relay: str, reason: str, delay_s: float) -> None:
        """A link could not be made."""
        sentence = f"{reason}; trying again in {delay_in_words(delay_s)}"
        self._say("link.unreachable", "bad", sentence, relay=relay, retry_in_s=delay_s)

    def lost(self, relay: str, reason: str, delay_s: float) -> None:
        """A link that stood is gone."""
        sentence = f"{reason}; connecting again in {delay_in_words(delay_s)}"
        self._say("link.lost", "bad", sentence, relay=relay, retry_in_s=delay_s)

    def moving(self, relay: str, reason: str) -> None:
        """A relay asked to connect elsewhere."""
        sentence = f"{relay} asks to connect elsewhere ({reason or 'draining'}); doing so"
        self._say("link.moving", "neutral", sentence, relay=relay)

    def token_not_renewed(self, relay: str, reason: str) -> None:
        """A relay refused a newer token and goes on with the older one."""
        sentence = (
            f"{relay} refused the renewed token: {reason}. The link works until the token before "
            "it expires; the operator of the relay has to look at it"
        )
        self._say("token.not_renewed", "bad", sentence, relay=relay)

    def certificate_refused(self, relay: str) -> None:
        """A relay does not know our certificate."""
        sentence = (
            f"{relay} refused this agent's certificate; getting a new token and trying again. "
            "If this stays, look at the tunnel's page: it may have been revoked, and a new "
            "code joins this host again (byoai-agent join CODE --replace)"
        )
        self._say("link.certificate_refused", "bad", sentence, relay=relay)

    def renewal_failed(self, error: Exception, delay_s: float) -> None:
        """A token or certificate could not be renewed yet."""
        sentence = f"{error}; asking again in {delay_in_words(delay_s)}"
        self._say("credentials.renewal_failed", "bad", sentence, retry_in_s=delay_s)

    def identity_shared(self, hostname: str, since: int) -> None:
        """Another host runs with this agent's state."""
        self._say("identity.shared", "bad", identity_shared(hostname, since), hostname=hostname)

    def token_refreshed(self) -> None:
        """A new token is in use; of interest to a log, not to a person."""
        log.info("token.refreshed")

    def certificate_renewed(self) -> None:
        """A new certificate is in use; of interest to a log, not to a person."""
        log.info("certificate.renewed")

    def state_not_written(self, reason: str) -> None:
        """Writing the state began to fail."""
        sentence = f"{reason}; the agent goes on from memory and tries again every few seconds"
        self._say("state.not_written", "bad", sentence)

    def state_written(self) -> None:
        """Writing the state works again, and all of it is on the disk."""
        self._say("state.written", "good", "the state directory can be written again")

    def renewal_postponed(self, error: Exception, left_s: float) -> None:
        """A renewal waits until its key can be saved."""
        sentence = (
            f"the certificate is due for renewal, but its new key cannot be saved: {error}. "
            f"The certificate is valid for {left_s / 3600:.1f} h; trying again every minute"
        )
        self._say("certificate.renewal_postponed", "bad", sentence)

    def renewing_unsaved(self, error: Exception) -> None:
        """The certificate ends soon, and its successor's key is only in memory."""
        sentence = (
            f"{error}. The certificate ends soon, so it is renewed with a key that is only in "
            "memory. Mend this before the agent is stopped: without the new key it has to join "
            "again (byoai-agent join CODE --replace)"
        )
        self._say("certificate.renewed_unsaved", "bad", sentence)

    def state_notice(self, sentence: str) -> None:
        """Something about the state directory is not as it should be; the agent goes on."""
        self._say("state.notice", "bad", sentence)

    def clock_is_wrong(self, offset_s: float) -> None:
        """The host's clock differs from the gateway's."""
        way = "slow" if offset_s > 0 else "fast"
        sentence = (
            f"this host's clock is {abs(offset_s):.0f} s {way}; going on with the gateway's time, "
            "but please set the clock: certificates depend on it"
        )
        self._say("clock.wrong", "bad", sentence)

    def upstreams(
        self, lines: Sequence[str], faults: Sequence[str] = (), waiting: Sequence[str] = ()
    ) -> None:
        """The model servers or their models changed: those that answer, do not, or will soon."""
        for line in lines:
            self._say("upstream.found", "good", line)
        for one in waiting:
            sentence = f"{one}; this agent keeps asking until it is ready"
            self._say("upstream.waiting", "neutral", sentence)
        for fault in faults:
            sentence = f"{fault}; its models are not served until it answers"
            self._say("upstream.down", "bad", sentence)
        if not lines and not faults and not waiting:
            self._say(
                "upstream.missing",
                "bad",
                "no model server answers on this host; start Ollama, vLLM or another, or name "
                "it: byoai-agent run --upstream http://127.0.0.1:8000",
            )

    def stopping(self, answers: int, limit_s: float) -> None:
        """The agent was asked to stop."""
        wait = f"; running answers ({answers}) get {limit_s:.0f} s to finish" if answers else ""
        self._say("agent.stopping", "neutral", f"stopping{wait}", in_flight=answers)

    def ended(self, sentence: str) -> None:
        """The agent cannot go on."""
        self._say("agent.ended", "bad", sentence)

    def _say(self, event: str, mood: Mood, sentence: str, **facts: object) -> None:
        if self._console is None:
            write = log.warning if mood == "bad" else log.info
            write(event, reason=sentence, **facts)
            return
        stamp = time.strftime("%H:%M:%S")
        self._console.print(f"[dim]{stamp}[/] {_MARKS[mood]} ", end="")
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def identity_shared(hostname: str, since: int) -> str:
    """Say that another host runs with the same state, and what to do."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    return (
        f"another host uses this agent's identity: {hostname or 'without a name'}, since {stamp}; "
        "they cut each other off. Stop the agent on one of them and join it with a new code "
        "(byoai-agent join CODE --replace)"
    )


def delay_in_words(delay_s: float) -> str:
    """A delay as people say it."""
    return f"{delay_s:.0f} s" if delay_s >= 1.5 else "a second"
