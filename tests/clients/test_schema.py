"""Requests made up from the OpenAPI document, right ones and wrong ones: none of them is an error of the server's."""

import json

import pytest
import schemathesis
from conftest import PATIENCE, Server
from hypothesis import settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance


@pytest.fixture(scope="session")
def schema(tmp_path_factory):
    # A small context, so that no request takes long.
    state = str(tmp_path_factory.mktemp("state"))
    with Server("--ctx-size", "128", "--state-dir", state) as server:
        yield schemathesis.openapi.from_url(server.url + "/openapi.json")


document = schemathesis.pytest.from_fixture("schema")


@document.parametrize()
@settings(max_examples=100, deadline=None)
def test_no_request_is_an_error_of_the_servers(case):
    if isinstance(case.body, dict):
        # A name that is made up is never ours, and would hide what else is wrong.
        case.body.pop("model", None)
        if case.path.startswith("/api/"):
            case.body["model"] = "stories"
    response = case.call(timeout=PATIENCE)
    checks = [not_a_server_error, status_code_conformance]
    streams = ("text/event-stream", "application/x-ndjson")
    is_stream = response.headers.get("content-type", [""])[0].startswith(streams)
    case.validate_response(response, checks=checks if is_stream else [*checks, response_schema_conformance])
    if response.status_code == 400:
        error = json.loads(response.content)["error"]
        if case.path.startswith("/api/"):
            assert isinstance(error, str) and error
        elif case.path.startswith("/v1/messages"):
            assert error["message"] and error["type"] == "invalid_request_error", error
        else:
            assert error["message"] and error["code"], error
