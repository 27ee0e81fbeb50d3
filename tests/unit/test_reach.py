"""ExchangeWatch: a market is unreachable when neither frames nor answers arrive, and never because it is quiet."""

from hypothesis import given
from hypothesis import strategies as st

from klinesync.exchanges.contact import RestContact
from klinesync.exchanges.reach import USUAL_SILENCE, ExchangeWatch

TICK_S = 0.5


class Market:
    """A market in ticks: `frames` and `answers` say whether they arrive at present."""

    def __init__(self) -> None:
        self.watch = ExchangeWatch()
        self.now_s = 100.0
        self.contact = RestContact()
        self.asked_s: list[float] = []
        self.frames = self.answers = True
        self.failure, self.status = "no route", 0
        self.followed = True

    def run(self, ticks: int) -> list[float]:
        """The moments at which `unreachable` changed."""
        turned = []
        for _ in range(ticks):
            self.now_s += TICK_S
            if self.frames:
                self.watch.frame_s = self.now_s
            if self.watch.check(self.now_s, self.contact, followed=self.followed):
                turned.append(self.now_s)
            if self.watch.ask_due(self.now_s):
                self.asked_s.append(self.now_s)
                if self.answers:
                    self.contact = RestContact(self.now_s)
                else:
                    self.contact = RestContact(self.contact.answered_s, self.failure, self.status)
        return turned


def test_while_frames_come_nobody_asks() -> None:
    market = Market()
    market.run(100)
    assert not market.asked_s
    assert not market.watch.unreachable


def test_a_quiet_market_that_answers_is_reachable_for_ever() -> None:
    market = Market()
    market.frames = False
    assert market.run(1000) == []
    assert not market.watch.unreachable
    assert market.watch.answers(market.now_s)
    pauses = {round(after - before, 6) for before, after in zip(market.asked_s, market.asked_s[1:], strict=False)}
    assert pauses <= {USUAL_SILENCE.ask_after_s, USUAL_SILENCE.ask_after_s + TICK_S}, (
        "it is asked only when nothing was heard for a while"
    )


def test_a_dead_exchange_is_unreachable_after_five_seconds_and_back_with_the_first_sign_of_life() -> None:
    market = Market()
    market.run(10)
    died_s = market.now_s
    market.frames = market.answers = False
    turned = market.run(40)
    assert turned == [died_s + USUAL_SILENCE.unreachable_after_s]
    assert market.watch.silent_from_s == died_s
    assert market.watch.failure == "no route"
    assert min(market.asked_s) == died_s + USUAL_SILENCE.ask_after_s
    assert all(
        after - before >= USUAL_SILENCE.ask_every_s
        for before, after in zip(market.asked_s, market.asked_s[1:], strict=False)
    )
    market.answers = True
    assert len(market.run(10)) == 1
    assert not market.watch.unreachable
    assert market.watch.failure is None


def test_one_that_was_never_heard_is_unreachable_five_seconds_after_it_is_followed() -> None:
    market = Market()
    market.frames = market.answers = False
    market.followed = False
    assert market.run(50) == []
    assert not market.asked_s, "of an idle market nothing is asked"
    market.followed = True
    began_s = market.now_s + TICK_S
    assert market.run(50) == [began_s + USUAL_SILENCE.unreachable_after_s]
    market.followed = False
    assert len(market.run(1)) == 1
    assert not market.watch.unreachable, "an idle market is nobody's trouble"


def test_a_pause_of_this_process_is_no_silence_of_the_exchange() -> None:
    market = Market()
    market.run(10)
    market.now_s += 60.0
    market.frames = False  # they still wait in the socket
    assert market.run(1) == []
    assert not market.watch.unreachable
    market.answers = False
    assert len(market.run(20)) == 1, "a silence that goes on is one"


def test_a_refusal_is_known_at_once_though_frames_come_and_is_asked_about_until_it_ends() -> None:
    for status in (401, 403, 451):
        market = Market()
        market.contact = RestContact(99.0, "restricted location", status)
        market.failure, market.status, market.answers = "restricted location", status, False
        market.run(1)
        assert market.watch.refused == "restricted location"
        market.run(20)
        assert len(market.asked_s) > 1
        market.answers = True
        market.run(20)
        assert market.watch.refused is None
    market = Market()
    market.contact = RestContact(99.0, "bad symbol", 400)
    market.run(1)
    assert market.watch.refused is None


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(1, 12)), max_size=20))
def test_unreachable_means_exactly_that_nothing_was_heard_for_so_long(phases: list[tuple[bool, bool, int]]) -> None:
    market = Market()
    market.run(1)
    heard_s = market.now_s
    for frames, answers, ticks in phases:
        market.frames, market.answers = frames, answers
        for _ in range(ticks):
            before = market.contact.answered_s
            market.run(1)
            silent_s = market.now_s - heard_s if not frames else 0.0
            assert market.watch.unreachable == (silent_s >= USUAL_SILENCE.unreachable_after_s)
            if frames or market.contact.answered_s != before:
                heard_s = market.now_s
