"""Requests that schemathesis makes of the server's own description: each answer is one that the description knows."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from .conftest import Served

CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def described(served: Served) -> Any:
    return schemathesis.openapi.from_url(f"{served.address}/openapi.json")


OPERATIONS = [
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/v1/styles"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/tokenize"),
    ("POST", "/v1/next"),
]


def judged(case: Any) -> None:
    """Ask, with the name of a model that there is, so that more than its name is judged."""
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str) and len(case.body["model"]) != 1:
        case.body["model"] = "tuned" if "messages" in case.body else "base"
    if "name" in (case.path_parameters or {}) and len(case.path_parameters["name"]) > 3:
        case.path_parameters["name"] = "base"
    response = case.call(timeout=60)
    case.validate_response(response, checks=CHECKS)


def judge(described: Any, method: str, path: str, examples: int) -> None:
    asked = given(described[path][method].as_strategy())
    settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))(asked(judged))()


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_are_as_described(described: Any, method: str, path: str) -> None:
    judge(described, method, path, 25)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_are_as_described_at_length(described: Any, method: str, path: str) -> None:
    judge(described, method, path, 1000)


def test_what_is_described(served: Served) -> None:
    found = httpx.get(f"{served.address}/openapi.json").json()
    assert {(method.upper(), path) for path, methods in found["paths"].items() for method in methods} == set(OPERATIONS)
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            assert {"400", "401", "404", "413", "421", "429", "503"} <= operation["responses"].keys(), (path, method)
            assert "422" not in operation["responses"]
            told = operation["responses"]["400"]["content"]["application/json"]["schema"]
            assert told == {"$ref": "#/components/schemas/Refused"}
