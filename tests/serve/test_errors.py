"""A refusal names the field that is wrong, and what is wrong with the value that was meant."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from awqkit_runtime.serve.errors import explain_validation
from awqkit_runtime.serve.protocol.chat import ChatRequest
from awqkit_runtime.serve.protocol.completions import CompletionRequest


def message(model: type[BaseModel], body: dict[str, Any]) -> str:
    """As FastAPI has it of a body."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    errors = [one | {"loc": ("body", *one["loc"])} for one in caught.value.errors()]
    found: str = explain_validation(RequestValidationError(errors, body=body)).body.error.message
    return found


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([], "prompt: List should have at least 1 item"),
        ([-1], "prompt.0: Input should be greater than or equal to 0."),
        ([[2, -1]], "prompt.0.1: Input should be greater than or equal to 0."),
        ([[]], "prompt.0: List should have at least 1 item"),
        (["a", 5], "prompt.1: Input should be a valid string."),
        (7, "prompt: Input should be a valid string."),
    ],
)
def test_of_several_types_that_which_was_meant_counts(prompt: Any, expected: str) -> None:
    assert message(CompletionRequest, {"model": "m", "prompt": prompt}).startswith(expected)


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        ({"role": "user", "content": None}, "messages.0.content: Input should be a valid string."),
        ({"role": "user"}, "messages.0.content: Field required."),
        ({"content": "Hi"}, "messages.0: It must be an object with 'role'."),
    ],
)
def test_a_field_that_is_null_or_missing_is_named(sent: Any, named: str) -> None:
    assert message(ChatRequest, {"model": "m", "messages": [sent]}) == named
