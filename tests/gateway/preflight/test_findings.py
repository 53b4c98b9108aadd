import msgspec

from byoai_gateway.preflight.findings import (
    Finding,
    Verdict,
    as_json,
    as_text,
    doubtful,
    failed,
    is_sound,
    passed,
)

FINDINGS = (
    passed("database.url", "it answers"),
    doubtful("relays", "there is none", "add one"),
    Finding("default_provider.key", Verdict.FAILED, "it is refused", "replace it", 12),
)


def test_people_read_what_was_found_and_what_to_do() -> None:
    assert as_text(FINDINGS).splitlines() == [
        "ok       database.url: it answers",
        "warning  relays: there is none",
        "         add one",
        "failed   default_provider.key: it is refused (12 ms)",
        "         replace it",
    ]


def test_programs_read_the_same() -> None:
    shown = msgspec.json.decode(as_json(FINDINGS))
    assert shown["ok"] is False
    assert [it["status"] for it in shown["findings"]] == ["ok", "warning", "failed"]
    assert shown["findings"][2] == {
        "setting": "default_provider.key",
        "status": "failed",
        "message": "it is refused",
        "fix": "replace it",
        "durationMs": 12,
    }


def test_a_warning_alone_is_no_failure() -> None:
    assert is_sound(FINDINGS[:2])
    assert not is_sound(FINDINGS)
    assert not is_sound((failed("a", "b", "c"),))
