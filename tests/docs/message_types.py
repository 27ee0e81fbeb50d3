"""The TypeScript types of the messages that the page exchanges with the service, generated from the schemas of both.

Run as a program this module writes `frontend/src/messages.ts` (`make types`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import msgspec
from pydantic import TypeAdapter

from klinesync.market.factor_schemas import DrawDeltaAnswer, FactorCatalogAnswer
from klinesync.market.schemas import (
    CandlesAnswer,
    ErrorAnswer,
    HealthAnswer,
    WhitelistAnswer,
)
from klinesync.market_data.status import ServiceStatus
from klinesync.ws.messages import ClientMessage, ServerMessage

FILE = Path(__file__).parents[2] / "frontend" / "src" / "messages.ts"

HEAD = """\
// The messages of the service, as they are on the wire. Generated from its schemas by `make types`: do not edit.
"""

# The bodies that the page reads.
ANSWERS: tuple[type, ...] = (
    CandlesAnswer,
    DrawDeltaAnswer,
    ErrorAnswer,
    FactorCatalogAnswer,
    HealthAnswer,
    ServiceStatus,
    WhitelistAnswer,
)

# The messages of the WebSocket, by the name of the union of each direction.
MESSAGES = {"ServerMessage": ServerMessage, "ClientMessage": ClientMessage}

Schema = Mapping[str, object]

_REF = "#/$defs/"
_PRIMITIVES = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}
# Differences beyond TypeScript's types: values are validated where they are received.
_IGNORED = {
    "default", "description", "discriminator", "examples", "example", "exclusiveMinimum", "format", "maxItems",
    "maxLength", "maximum", "minItems", "minLength", "minimum", "pattern", "title",
}  # fmt: skip


class UnknownSchema(Exception):
    """A schema without a translation yet: extend the generator instead of writing a type that is too wide."""


def source() -> str:
    """The text of the generated file."""
    definitions = _definitions()
    parts = [declaration(name, definitions[name]) for name in sorted(definitions)]
    return HEAD + "".join(f"\n{part}\n" for part in parts)


def _definitions() -> dict[str, Schema]:
    template = _REF + "{model}"
    _, answers = TypeAdapter.json_schemas(
        [(answer, "serialization", TypeAdapter(answer)) for answer in ANSWERS], ref_template=template
    )
    unions, messages = msgspec.json.schema_components(
        MESSAGES.values(), schema_hook=_schema_of, ref_template=_REF + "{name}"
    )
    definitions: dict[str, Schema] = dict(answers["$defs"])
    for name, schema in [*messages.items(), *zip(MESSAGES, unions, strict=True)]:
        held = definitions.setdefault(name, schema)
        if declaration(name, held) != declaration(name, schema):
            raise UnknownSchema(f"two schemas are called {name}")
    return definitions


def _schema_of(custom: type) -> dict[str, object]:
    if custom is object:
        return {"title": "any value"}  # msgspec's empty schema stands for None
    raise UnknownSchema(f"no schema for {custom}")


def declaration(name: str, schema: Schema) -> str:
    """The exported declaration of one named schema.

    name: of the type.
    schema: JSON Schema, as pydantic and msgspec write it.

    Raises UnknownSchema for a keyword that it cannot translate.
    """
    if "properties" not in schema:
        return f"export type {name} = {type_of(schema)};"
    properties = schema["properties"]
    required = schema.get("required", [])
    assert isinstance(properties, dict)
    assert isinstance(required, list)
    lines = [
        f"  readonly {key}{'' if key in required else '?'}: {type_of(value)};" for key, value in properties.items()
    ]
    return "\n".join([f"export interface {name} {{", *lines, "}"])


def type_of(schema: Schema) -> str:
    """The TypeScript type of a schema. Raises UnknownSchema for a keyword that it cannot translate."""
    known = {name: value for name, value in schema.items() if name not in _IGNORED}
    match known:
        case {**rest} if not rest:
            return "unknown"
        case {"$ref": str(reference), **rest} if not rest and reference.startswith(_REF):
            return reference.removeprefix(_REF)
        case {"anyOf": list(parts), **rest} | {"oneOf": list(parts), **rest} if not rest:
            return " | ".join(dict.fromkeys(type_of(part) for part in parts))
        case {"const": value, **rest} if rest.keys() <= {"type"}:
            return json.dumps(value)
        case {"enum": list(values), **rest} if rest.keys() <= {"type"}:
            return " | ".join(sorted(json.dumps(value) for value in values))  # pydantic and msgspec differ in order
        case {"type": "array", "items": dict(items), **rest} if not rest:
            return f"readonly {_grouped(type_of(items))}[]"
        case {"type": "object", "additionalProperties": dict(values), **rest} if not rest:
            return f"Readonly<Record<string, {type_of(values)}>>"
        case {"type": "object", **rest} if not rest:
            return "Readonly<Record<string, unknown>>"
        case {"type": str(name), **rest} if not rest and name in _PRIMITIVES:
            return _PRIMITIVES[name]
    raise UnknownSchema(f"no TypeScript type for {known}")


def _grouped(name: str) -> str:
    return f"({name})" if " " in name else name


if __name__ == "__main__":
    FILE.write_text(source())
