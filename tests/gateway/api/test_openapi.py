"""The document against what is really served, without sending what it describes."""

import re
from collections.abc import AsyncGenerator, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
import pytest
import schemathesis

from byoai_gateway.router.endpoints import ENDPOINTS, PREFIX, BodyKind
from byoai_gateway.router.payload import FieldsRead
from support.control import Api, FakeClock, gateway_config, open_api

METHODS = {"get", "post", "put", "patch", "delete"}
ERRORS = "application/json"


@pytest.fixture
async def api(tmp_path: Path, clock: FakeClock) -> AsyncGenerator[Api]:
    async with open_api(gateway_config(tmp_path), clock) as opened:
        yield opened


@pytest.fixture
async def document(api: Api) -> Any:
    status, document = await api.call("GET", "/openapi.json")
    assert status == 200
    return document


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, of_path in document["paths"].items():
        assert set(of_path) <= METHODS
        for method, operation in of_path.items():
            yield method.upper(), path, operation


async def test_it_is_openapi_3_1(document: Any) -> None:
    assert document["openapi"] == "3.1.0"
    schemathesis.openapi.from_dict(document).validate()


async def test_a_document_that_is_not_openapi_is_noticed(document: Any) -> None:
    document["paths"]["/healthz"]["get"]["responses"]["200"].pop("description")
    with pytest.raises(ValueError, match="description"):
        schemathesis.openapi.from_dict(document).validate()


async def test_it_describes_every_endpoint_of_the_table_and_no_other_under_v1(
    document: Any,
) -> None:
    described = {
        (method, path) for method, path, _ in operations(document) if path.startswith(PREFIX)
    }
    assert described == {(it.method, PREFIX + it.path) for it in ENDPOINTS}


async def test_it_describes_every_route_of_the_application_and_nothing_else(
    api: Api, document: Any
) -> None:
    app = api.http.app
    assert app is not None
    served = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    described = {(method, path) for method, path, _ in operations(document)}
    assert {it for it in described if not it[1].startswith(PREFIX)} == served


async def test_a_call_is_described_by_what_it_takes_and_answers(document: Any) -> None:
    for endpoint in ENDPOINTS:
        operation = document["paths"][PREFIX + endpoint.path][endpoint.method.lower()]
        assert set(operation["responses"]["200"]["content"]) == set(endpoint.answers)
        taken = set(operation.get("requestBody", {"content": {}})["content"])
        assert (
            taken
            == {
                BodyKind.NONE: set[str](),
                BodyKind.JSON: {"application/json"},
                BodyKind.MULTIPART: {"multipart/form-data"},
            }[endpoint.body]
        )


async def test_every_operation_has_a_name_a_tag_that_is_explained_and_errors_in_our_shape(
    document: Any,
) -> None:
    tags = {tag["name"] for tag in document["tags"]}
    names: list[str] = []
    for _, path, operation in operations(document):
        names.append(operation["operationId"])
        assert operation["tags"][0] in tags
        assert operation["summary"]
        places = [it["in"] for it in operation.get("parameters", [])]
        assert places.count("path") == path.count("{")
        assert "500" in operation["responses"]
        for status, answer in operation["responses"].items():
            assert "x-request-id" in answer["headers"]
            if not status.startswith("2"):
                schema = answer["content"][ERRORS]["schema"]
                shapes = schema.get("anyOf", [schema])
                assert {"$ref": "#/components/schemas/ApiErrorBody"} in shapes
    assert len(names) == len(set(names))


async def test_every_reference_leads_somewhere(document: Any) -> None:
    references = re.findall(r'"\$ref":"#/components/(\w+)/([\w-]+)"', text_of(document))
    assert references
    for kind, name in references:
        assert name in document["components"][kind]


def text_of(document: Any) -> str:
    return msgspec.json.encode(document).decode()


async def test_the_fields_described_are_those_that_are_read(document: Any) -> None:
    schema = document["components"]["schemas"]["FieldsRead"]
    read = {field.encode_name for field in msgspec.structs.fields(FieldsRead)}
    assert set(schema["properties"]) == read == {"model", "stream", "stream_options"}
    assert schema["required"] == []
    assert schema.get("additionalProperties", True) is True
    assert document["components"]["schemas"]["RegisterAsked"]["additionalProperties"] is False


async def test_the_limits_are_those_of_the_configuration(tmp_path: Path, clock: FakeClock) -> None:
    config = gateway_config(tmp_path)
    limits = msgspec.structs.replace(config.limits, max_body_bytes=4321)
    async with open_api(msgspec.structs.replace(config, limits=limits), clock) as api:
        _, document = await api.call("GET", "/openapi.json")
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert "4321 bytes" in chat["requestBody"]["description"]
    assert "65536 bytes" in document["info"]["description"]


async def test_the_statuses_of_a_call_are_the_ones_it_can_answer(document: Any) -> None:
    register = document["paths"]["/api/tunnel/register"]["post"]
    assert register["security"] == [{"user": []}]
    assert set(register["responses"]) == {
        *("201", "400", "401", "403", "404", "408", "409", "413", "417", "429", "431", "500", "503")
    }
    health = document["paths"]["/healthz"]["get"]
    assert "security" not in health
    assert set(health["responses"]) == {"200", "400", "408", "417", "431", "500"}


async def test_what_needs_a_token_says_so_and_nothing_else_does(api: Api, document: Any) -> None:
    for method, path, operation in operations(document):
        if path.startswith(PREFIX):  # not served by the application
            has_key = path.startswith(f"{PREFIX}/messages")
            assert operation["security"] == [{"user": []}, *([{"userKey": []}] * has_key)]
            continue
        url = re.sub(r"\{\w+\}", "x", path)
        async with api.http.request(method, url) as response:
            is_closed = response.status == HTTPStatus.UNAUTHORIZED
            assert is_closed is ("security" in operation), path
