"""The messages, events and errors of docs/reference/websocket.md, made from the code."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import errors_page
import generated
import message_types
import msgspec

from klinesync.ws.messages import ClientMessage, ServerMessage, SystemEventName

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "websocket.md"

# By event: its meaning, and the fields of `data`.
EVENTS: dict[str, str] = {
    "backfill.progress": "progress of a backfill of the series that takes a while; the last event has a `state` other "
    "than `running`. "
    "`data`: `state`, `reason`, `progress_pct`, `candles`, `missing_candles`, `candles_per_s`, `left_s`",
    "factor.rebuild": "factors and overlays are rebuilt; sent now and then during the rebuild, and once at its end. "
    "`data`: `state` (`running` or `done`), `reason`, `epoch`, `factor_head_time`, `head_time`",
    "history.extended": "older history has arrived; page it over HTTP. `data`: `first_time`",
    "slow": "the backlog of this connection has reached half of its limit, close to 1013; sent once per backlog. "
    "`data`: `waiting_messages`, `max_messages`, `waiting_bytes`, `max_bytes`",
    "stream.delisted": "the exchange does not trade the symbol",
    "stream.live": "the stream delivers the candles that REST shows",
    "stream.off": "nobody follows the series any more",
    "stream.reconnecting": "the connection is lost, or the exchange cannot be reached",
    "stream.rest_fallback": "REST stands in for the stream",
    "stream.stale": "the stream withholds candles that REST shows",
    "stream.subscribed": "the subscription is acknowledged, and no frame has arrived yet; a quiet series may stay so",
}


def page() -> str:
    """The text of the page, with its tables written anew."""
    text = PAGE.read_text()
    parts = {
        "client messages": _messages(ClientMessage),
        "server messages": _messages(ServerMessage),
        "system events": generated.table(("event", "meaning"), [(f"`{name}`", EVENTS[name]) for name in events()]),
        "error codes": generated.table(
            ("code", "when"), [(f"`{code}`", when) for code, when in sorted(errors_page.WEBSOCKET.items())]
        ),
    }
    for name, part in parts.items():
        text = generated.with_part(text, name, part)
    return text


def events() -> list[str]:
    """The names of the events of `system` messages."""
    return sorted(get_args(SystemEventName))


def _messages(union: object) -> str:
    schemas, definitions = msgspec.json.schema_components(
        get_args(union), schema_hook=message_types._schema_of, ref_template="#/$defs/{name}"
    )
    rows = []
    for kind, reference in zip(get_args(union), schemas, strict=True):
        schema = definitions[reference["$ref"].rpartition("/")[2]]
        fields = [
            f"`{name}`{'' if name in schema.get('required', ()) else '?'}: {_type(definitions, value)}"
            for name, value in schema["properties"].items()
            if name != "type"
        ]
        tag = msgspec.inspect.type_info(kind)
        assert isinstance(tag, msgspec.inspect.StructType)
        rows.append((f"`{tag.tag}`", "<br>".join(fields) or "–", generated.sentence(kind.__doc__)))
    return generated.table(("type", "fields (`?`: may be missing)", "meaning"), rows)


def _type(definitions: dict[str, dict[str, object]], schema: dict[str, object]) -> str:
    reference = str(schema.get("$ref", "")).rpartition("/")[2]
    if "enum" in definitions.get(reference, {}):
        schema = definitions[reference]
    return message_types.type_of(schema).replace("readonly ", "").replace("Readonly<Record<string, unknown>>", "object")
