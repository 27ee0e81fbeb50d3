"""The routes of docs/reference/http.md with their parameters and answers, as OpenAPI has them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import generated

from klinesync.market.app import create_app
from support.running_service import running_service

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "http.md"
TOKEN = "a-token-of-some-length"
# Any route may answer these; the page of errors explains them once.
EVERYWHERE = frozenset({"forbidden"})

Json = Mapping[str, object]


async def document(store: Path) -> Json:
    """The OpenAPI document of a service with all of its routes and a token."""
    async with running_service(store, enable_debug_api="on", api_token=TOKEN) as service:
        return create_app(service.runtime).openapi()


def page() -> str:
    """The text of the page, with its table of routes written anew. Not from within an event loop."""
    with TemporaryDirectory() as folder:
        found = asyncio.run(document(Path(folder) / "store.sqlite"))
    return generated.with_part(PAGE.read_text(), "routes", table(found))


def table(found: Json) -> str:
    """One line a route."""
    paths, schemas = _object(found["paths"]), _object(_object(found["components"])["schemas"])
    rows = []
    for path, methods in sorted(paths.items()):
        for method, operation in _object(methods).items():
            told = _object(operation)
            parameters = [*_query(told), *_body(told, schemas)]
            rows.append((f"`{method.upper()} {path}`", "<br>".join(parameters) or "–", "<br>".join(_answers(told))))
    return generated.table(("route", "query parameters and body", "answers"), rows)


def _query(operation: Json) -> Iterator[str]:
    for parameter in _objects(operation.get("parameters", [])):
        schema = _object(parameter["schema"])
        how = "required" if parameter["required"] else f"default {_shown(schema.get('default'))}"
        yield f"`{parameter['name']}`: {_type(schema)}, {how}"


def _body(operation: Json, schemas: Json) -> Iterator[str]:
    if "requestBody" not in operation:
        return
    reference = str(_object(_json_of(_object(operation["requestBody"]))["schema"])["$ref"])
    schema = _object(schemas[reference.rpartition("/")[2]])
    required = schema.get("required", [])
    assert isinstance(required, list)
    for name, value in _object(schema["properties"]).items():
        how = "required" if name in required else "optional"
        yield f"body `{name}`: {_type(_object(value))}, {how}"


def _answers(operation: Json) -> Iterator[str]:
    for status, answer in sorted(_object(operation["responses"]).items()):
        codes = re.findall(r"`([a-z_:]+)`", str(_object(answer).get("description", "")))
        told = [code for code in codes if code not in EVERYWHERE]
        if int(status) < 400:
            kind = next(iter(_object(_object(answer).get("content", {"": {}}))))
            yield f"{status} {kind.partition(';')[0]}"
        elif told:
            yield f"{status} {', '.join(f'`{code}`' for code in told)}"
        elif not codes:
            yield status


def _type(schema: Json) -> str:
    if "anyOf" in schema:
        return _type(next(part for part in _objects(schema["anyOf"]) if part.get("type") != "null"))
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        values = schema["enum"]
        assert isinstance(values, list)
        return " or ".join(f"`{value}`" for value in values)
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        most = f", at most {schema['maxItems']:,}" if "maxItems" in schema else ""
        return f"list of {_type(_object(schema['items']))}{most}"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    kind = words[str(schema["type"])]
    least, greatest = schema.get("minimum"), schema.get("maximum")
    if least is not None and greatest is not None:
        return f"{kind} from {_shown(least)} to {_shown(greatest)}"
    if "maxLength" in schema:
        return f"{kind} of at most {schema['maxLength']} characters"
    return kind


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _json_of(described: Json) -> Json:
    return _object(_object(described["content"])["application/json"])


def _object(value: object) -> dict[str, object]:
    assert isinstance(value, dict), value
    return value


def _objects(value: object) -> list[dict[str, object]]:
    assert isinstance(value, list), value
    return [_object(item) for item in value]
