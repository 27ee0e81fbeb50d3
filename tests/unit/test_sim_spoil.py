from __future__ import annotations

import json

import pytest

from klinesync.sim.faults import Variant
from klinesync.sim.spoil import Spoilt, spoil

EVENT = (
    b'{"e":"kline","E":1780315260004,"s":"BTCUSDT","k":{"t":1780315200000,"T":1780315259999,"s":"BTCUSDT","i":"1m",'
    b'"f":1,"L":3,"o":"1.0","c":"2.0","h":"3.0","l":"0.5","v":"9.0","n":3,"x":true,"q":"9.0","V":"1.0","Q":"1.0","B":"0"}}'
)
PERPETUAL = EVENT.replace(b'"kline"', b'"continuous_kline"').replace(b'"s":"BTCUSDT","k"', b'"ps":"BTCUSDT","k"')
PERPETUAL = PERPETUAL.replace(b'"T":1780315259999,"s":"BTCUSDT"', b'"T":1780315259999')


def changed(variant: Variant, event: bytes = EVENT, **more: bool) -> dict[str, tuple[object, object]]:
    """The changes of the variant: valid and spoilt value by path."""
    payload, is_binary = spoil(event, Spoilt(variant, "ETHUSDT"), None, micro=more.get("micro", False))
    assert not is_binary
    good, bad = json.loads(event), json.loads(payload)
    found = {name: (good.get(name), bad.get(name)) for name in good | bad if name != "k"}
    found |= {f"k.{name}": (good["k"].get(name), bad["k"].get(name)) for name in good["k"] | bad["k"]}
    return {
        name: values
        for name, values in found.items()
        if values[0] != values[1] or type(values[0]) is not type(values[1])
    }


def test_each_variant_spoils_just_what_its_name_says() -> None:
    assert set(changed("wrong_types")) == {f"k.{name}" for name in "tohlcv"}
    assert changed("wrong_symbol") == {"s": ("BTCUSDT", "ETHUSDT"), "k.s": ("BTCUSDT", "ETHUSDT")}
    assert changed("wrong_symbol", PERPETUAL) == {"ps": ("BTCUSDT", "ETHUSDT")}
    assert changed("wrong_interval") == {"k.i": ("1m", "5m")}
    assert changed("wrong_interval", EVENT.replace(b'"1m"', b'"5m"')) == {"k.i": ("5m", "1m")}
    assert changed("closed_text") == {"k.x": (True, "false")}
    assert changed("nan") == {"k.c": ("2.0", "NaN"), "k.h": ("3.0", "Infinity"), "k.v": ("9.0", "nan")}
    year_ms = 365 * 86_400_000
    for micro, ahead in ((False, year_ms), (True, year_ms * 1000)):
        future = changed("future", micro=micro)
        assert set(future) == {"E", "k.t", "k.T"}
        assert all(int(str(bad)) - int(str(good)) == ahead for good, bad in future.values())
    (pad,) = changed("huge").values()
    assert len(str(pad[1])) == 1 << 20


@pytest.mark.parametrize("stream", [None, "btcusdt@kline_1m"])
def test_broken_and_binary_frames_are_made_of_the_whole_message(stream: str | None) -> None:
    whole, is_binary = spoil(EVENT, Spoilt("binary", ""), stream, micro=False)
    assert is_binary
    assert json.loads(whole) == (json.loads(EVENT) if stream is None else {"stream": stream, "data": json.loads(EVENT)})
    broken, is_binary = spoil(EVENT, Spoilt("broken_json", ""), stream, micro=False)
    assert not is_binary
    assert whole.startswith(broken)
    with pytest.raises(json.JSONDecodeError):
        json.loads(broken)
