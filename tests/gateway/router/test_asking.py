"""What an answer cost is known even when it says that it failed."""

from support.gateway import Gateway
from support.provider import Provider
from support.provider_script import chat_answer, usage, whole


async def test_an_error_in_a_whole_answer_is_recorded_with_what_it_cost(
    gateway: Gateway, default: Provider
) -> None:
    # A refusal of the request: neither tried again nor moved to somebody else.
    told = {"message": "flagged", "code": 400}
    default.expect(whole({**chat_answer(usage=usage(7, 9)), "error": told}))
    answer = await gateway.chat(stream=False)
    assert (answer.status, answer.error["message"]) == (400, "flagged")
    (record,) = await gateway.records()
    assert (record.prompt_tokens, record.completion_tokens) == (7, 9)
    assert record.outcome == "rejected"
