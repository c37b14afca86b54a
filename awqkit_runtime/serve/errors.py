"""Errors as OpenAI's API words them: a status and {"error": {message, type, param, code}}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from awqkit_runtime.errors import AwqkitError

#: Types of errors by status, as OpenAI's client libraries know them.
_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """The body of every answer that is not 200."""

    error: ErrorDetail


class ApiError(AwqkitError):
    """A request that ends with a status other than 200."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body = ErrorResponse(
            error=ErrorDetail(
                message=message,
                type=_TYPES.get(status, "invalid_request_error"),
                param=param,
                code=code,
            )
        )

    def response(self) -> JSONResponse:
        return JSONResponse(self.body.model_dump(), self.status, headers=self.headers)


class ClientGoneError(Exception):
    """The client closed its connection before it had its answer."""


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """The request itself is wrong."""
    return ApiError(400, message, param=param, code=code)


def install_handlers(app: FastAPI) -> None:
    """Answers every failure in the one shape."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(ClientGoneError, _nobody)
    app.add_exception_handler(Exception, _bug)


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return explain_validation(error).response()


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    path, allowed = request.url.path, dict(error.headers or {}).get("Allow")
    message = {
        404: f"There is nothing at {path}; the paths of the API begin with /v1.",
        405: f"{path} takes {allowed}, not {request.method}.",
    }.get(error.status_code, error.detail)
    return ApiError(error.status_code, message, headers=error.headers).response()


async def _nobody(request: Request, error: Exception) -> Response:
    """Nobody is left to read it."""
    return Response(status_code=499)


async def _bug(request: Request, error: Exception) -> JSONResponse:
    """Starlette logs the error itself; its text may show what is none of the client's business."""
    return ApiError(500, "The server failed at this request; its log says how.").response()


def explain_validation(error: RequestValidationError) -> ApiError:
    """What is wrong with a body, by the name of its field.

    A value that may have several types is wrong for each; the type that it came nearest to is the
    one that was meant: that which it is, where it breaks a rule for it.
    """
    first = max(
        error.errors(), key=lambda one: (len(one["loc"]), not one["type"].endswith("_type"))
    )
    steps = _steps_in(error.body, first["loc"][1:])
    if first["type"] == "missing":
        steps.append(str(first["loc"][-1]))
    name = ".".join(steps) or None
    if first["type"] == "extra_forbidden" or first.get("ctx", {}).get("max_length") == 0:
        return invalid(
            f"{name} is not supported by this server; leave it out.", param=name, code="unsupported"
        )
    if first["type"] == "json_invalid":
        return invalid(f"The body is not JSON: {first['ctx']['error']}.")
    if isinstance(error.body, bytes):
        return invalid("The body must be JSON, and the header Content-Type: application/json.")
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    if first["type"] == "union_tag_not_found":
        message = f"It must be an object with {first['ctx']['discriminator']}"
    return invalid(f"{name or 'The body'}: {message}.", param=name)


def _steps_in(body: Any, path: Sequence[str | int]) -> list[str]:
    """The steps of a path that lead somewhere in a body; others say which type was tried."""
    found = []
    for step in path:
        if _leads_on(body, step):
            found.append(str(step))
            body = body[step]
    return found


def _leads_on(body: Any, step: str | int) -> bool:
    if isinstance(body, dict):
        return step in body
    return isinstance(body, list) and isinstance(step, int) and step < len(body)
