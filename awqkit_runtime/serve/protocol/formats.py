"""Fields that hold an answer to a form: response_format, regex, grammar."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from awqkit_runtime.engine.grammar import Grammar
from awqkit_runtime.errors import RequestError
from awqkit_runtime.serve.errors import invalid
from awqkit_runtime.serve.protocol.sampling import RequestModel, SamplingFields


class TextFormat(RequestModel):
    type: Literal["text"]


class JsonObjectFormat(RequestModel):
    type: Literal["json_object"]


class JsonSchema(RequestModel):
    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    #: Answers match the schema in either case.
    strict: bool | None = None


class JsonSchemaFormat(RequestModel):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class ConstrainedFields(SamplingFields):
    """At most one of them."""

    response_format: ResponseFormat | None = None
    #: A regular expression that the whole answer matches.
    regex: str | None = None
    #: A grammar in llguidance's dialect of Lark.
    grammar: str | None = None

    @property
    def form_field(self) -> str:
        """The field that constraint() reads."""
        given = (name for name in ("regex", "grammar") if getattr(self, name) is not None)
        return next(given, "response_format")

    def constraint(self) -> Grammar | None:
        """What the answer must match. ApiError for several, or one that is too long."""
        found = [
            grammar
            for name, grammar in {
                "response_format": _format_grammar(self.response_format),
                "regex": make_grammar("regex", self.regex, param="regex"),
                "grammar": make_grammar("lark", self.grammar, param="grammar"),
            }.items()
            if grammar is not None
        ]
        if len(found) > 1:
            raise invalid("response_format, regex and grammar exclude each other; give one.")
        return found[0] if found else None


def json_grammar(schema: dict[str, Any], *, param: str) -> Grammar:
    """Of texts that are JSON and match a schema."""
    grammar = make_grammar("json_schema", json.dumps(schema), param=param)
    assert grammar is not None
    return grammar


def make_grammar(
    kind: Literal["json_schema", "regex", "lark"], text: str | None, *, param: str
) -> Grammar | None:
    """None for no text; ApiError for one that is too long."""
    if text is None:
        return None
    try:
        return Grammar(kind=kind, text=text)
    except RequestError as error:
        raise invalid(str(error), param=param) from error


def _format_grammar(wanted: ResponseFormat | None) -> Grammar | None:
    if isinstance(wanted, JsonSchemaFormat):
        return json_grammar(wanted.json_schema.schema_, param="response_format")
    if isinstance(wanted, JsonObjectFormat):
        return json_grammar({"type": "object"}, param="response_format")
    return None
