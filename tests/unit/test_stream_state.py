"""The states of a stream, in the spelling of the wire and in sentences."""

import pytest

from klinesync.client.board import STATES
from klinesync.core.stream_state import StreamState
from klinesync.exchanges.contact import StreamStatus, stream_sentence


def test_the_wire_spells_seven_states() -> None:
    spellings = ["off", "subscribed", "live", "stale", "rest_fallback", "reconnecting", "delisted"]
    assert [str(state) for state in StreamState] == spellings
    assert [f"stream.{state}" for state in StreamState] == [f"stream.{spelling}" for spelling in spellings]


@pytest.mark.parametrize("state", StreamState)
def test_every_state_has_a_sentence_and_a_place_on_the_board(state: StreamState) -> None:
    assert stream_sentence(StreamStatus(state))
    assert stream_sentence(StreamStatus(state, detail="the reason")).endswith(": the reason")
    assert state in STATES
