"""The schema behind the page at /: what FastAPI derives, with bodies that work as they stand."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from awqkit_runtime.serve.service import Service

_QUESTION = [{"role": "user", "content": "Who are you?"}]
#: What the page offers to send, by path; the model's name comes to each.
_EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": _QUESTION, "temperature": 0.7, "max_tokens": 64},
    "/v1/completions": {"prompt": "Once upon a time", "max_tokens": 32},
    "/v1/responses": {"input": "Who are you?", "max_output_tokens": 64},
    "/tokenize": {"messages": _QUESTION},
}


def describe(app: FastAPI, service: Service) -> None:
    """Completes the application's schema, which is made once and kept."""
    schema = app.openapi()
    for path, example in _EXAMPLES.items():
        content = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        content["example"] = {"model": service.model_name, **example}
    if service.config.api_keys:
        # Gives the page a place for the key.
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]
        schema["paths"]["/health"]["get"]["security"] = []
