"""A tape with edits against a dictionary of minutes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from klinesync.sim.edits import EditedTape, Halt, revised
from klinesync.sim.recorded import RecordedTape
from klinesync.sim.symbol import Symbol
from klinesync.sim.tape import Row, rows_of

MINUTES = 40
FIRST_S = 1_780_315_200
SYMBOL = Symbol("spot", "XYZUSDT", "XYZ", "USDT", 2, 3)

minutes = st.integers(-3, MINUTES + 3).map(lambda at: FIRST_S + 60 * at)


def candle(time: int) -> Row:
    price = 100.0 + (time - FIRST_S) / 60
    return Row(time, price, price + 1, price - 1, price + 0.5, 3.0, 300.0, 4, 1.0, 100.0, 1)


lengths_s = st.one_of(st.none(), st.integers(1, MINUTES).map(lambda length: 60 * length))
halts = st.builds(
    lambda start_s, length_s: Halt(start_s, None if length_s is None else start_s + length_s), minutes, lengths_s
)


@given(st.lists(halts, max_size=4), st.lists(minutes, max_size=4), minutes, minutes, st.sets(st.integers(0, MINUTES)))
def test_an_edited_tape_lacks_what_was_halted_and_has_what_was_revised(
    cuts: list[Halt], changed: list[int], start_s: int, end_s: int, missing: set[int]
) -> None:
    truth = {FIRST_S + 60 * at: candle(FIRST_S + 60 * at) for at in range(MINUTES) if at not in missing or at == 0}
    tape = EditedTape(RecordedTape(rows_of(list(truth.values())), 0))
    for turn, time in enumerate(changed):
        if time in truth:
            truth[time] = revised(truth[time], SYMBOL, turn / 4)
            tape.revise(truth[time])
    tape.halts += cuts
    expected = [
        row
        for time, row in truth.items()
        if start_s <= time < end_s
        and not any(cut.start_s <= time and (cut.end_s is None or time < cut.end_s) for cut in cuts)
    ]
    assert tape.minutes(start_s, end_s).rows() == expected


def test_a_tape_that_began_later_has_nothing_before() -> None:
    tape = EditedTape(RecordedTape(rows_of([candle(FIRST_S + 60 * at) for at in range(10)]), 0))
    tape.first_s = FIRST_S + 300
    assert tape.minutes(FIRST_S, FIRST_S + 600).time.tolist() == [FIRST_S + 60 * at for at in range(5, 10)]
    assert len(tape.minutes(FIRST_S, FIRST_S + 300)) == 0


prices = st.integers(1, 10**9).map(lambda ticks: ticks / 100)


@given(prices, prices, st.integers(0, 10**8).map(lambda lots: lots / 1000), st.floats(0, 1, exclude_max=True))
def test_a_revision_is_another_candle_and_a_possible_one(
    open_: float, close: float, volume: float, chance: float
) -> None:
    row = Row(0, open_, max(open_, close), min(open_, close), close, volume, volume * close, int(volume > 0), 0, 0, 1)
    new = revised(row, SYMBOL, chance)
    assert new.close > row.close
    assert new.volume > row.volume
    assert new.quote >= row.quote
    assert new.low <= min(new.open, new.close)
    assert new.high >= max(new.open, new.close)
    assert new.trades >= 1
    assert (new.time, new.open) == (row.time, row.open)
    assert revised(new, SYMBOL, chance) != new
