"""Faults in their JSON form, and the page that describes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from klinesync.sim.exchange import SimExchange, make_exchange
from klinesync.sim.fault_board import MAX_FAULTS, FaultBoard
from klinesync.sim.faults import (
    MAX_SCRIPT_FAULTS,
    VARIANTS,
    BadFault,
    Disconnect,
    Fault,
    Silent,
    UnknownFault,
    decode_fault,
    decode_script,
    kind_of,
)
from klinesync.sim.feed import KlineFeed
from klinesync.sim.generator import generated_tapes
from klinesync.sim.rest_faults import RestFaults
from klinesync.sim.streams import Streams

PAGE = (Path(__file__).parents[2] / "docs/reference/simulated-exchange.md").read_text()
NOW_MS = 1_780_315_217_000
KINDS = {str(kind.__struct_config__.tag): kind for kind in get_args(Fault)}


def exchange() -> SimExchange:
    return make_exchange(generated_tapes("spot", 2, 1, NOW_MS // 1000 - 86_400), 1, 0, "generator")


def board() -> FaultBoard:
    of = exchange()
    return FaultBoard(of, Streams(KlineFeed(of)), RestFaults())


def test_every_kind_that_the_contract_names_is_there() -> None:
    assert set(KINDS) == {
        "disconnect", "refuse_connect", "silent", "drop_closed", "late_closed", "duplicate", "reorder", "malformed",
        "rest_error", "rest_slow", "rate_limit", "rest_stale", "outage", "revise", "server_shutdown", "clock_skew",
        "delist", "unlisted",
    }  # fmt: skip


def test_the_page_has_every_kind_with_its_fields_and_examples_that_can_be_used() -> None:
    faults = [decode_fault(line) for line in re.findall(r'^\{"kind".*\}$', PAGE, re.MULTILINE)]
    assert {kind_of(fault) for fault in faults} == set(KINDS)
    for name, kind in KINDS.items():
        (row,) = re.findall(rf"^\| `{name}` \|(.*)$", PAGE, re.MULTILINE)
        fields = {field.name for field in msgspec.structs.fields(kind)} - {"symbols", "market"}
        told = set(re.findall(r"`(\w+)`", row.split("|")[0]))
        assert fields <= told, name
    assert all(f"`{variant}`" in PAGE for variant in VARIANTS)


def test_what_is_written_reads_back_as_the_same_fault() -> None:
    for name in KINDS:
        narrowed = {"skew_s": 1.5} if name == "clock_skew" else {"market": "spot", "symbols": ["BTCUSDT"]}
        fault = decode_fault(json.dumps({"kind": name, **narrowed}))
        assert decode_fault(msgspec.json.encode(fault)) == fault
        assert kind_of(fault) == name


def test_a_list_of_faults_says_which_of_them_cannot_be() -> None:
    assert decode_script('[{"kind": "silent"}, {"kind": "duplicate"}]')[0] == Silent()
    with pytest.raises(BadFault, match=r"\$\[1\]\.every"):
        decode_script('[{"kind": "silent"}, {"kind": "duplicate", "every": 0}]')
    with pytest.raises(BadFault, match=f"{MAX_SCRIPT_FAULTS} are allowed"):
        decode_script(json.dumps([{"kind": "silent"}] * (MAX_SCRIPT_FAULTS + 1)))


def test_there_is_room_for_so_many_faults_and_spent_ones_make_way() -> None:
    faults = board()
    spent = faults.add(Disconnect(), NOW_MS)
    for _ in range(MAX_FAULTS - 1):
        faults.add(Silent(), NOW_MS)
    faults.add(Silent(), NOW_MS)
    with pytest.raises(UnknownFault):
        faults.remove(spent, NOW_MS)
    with pytest.raises(BadFault, match="lift some of them first"):
        faults.add(Silent(), NOW_MS)
    faults.remove(spent + 1, NOW_MS)
    assert faults.add(Silent(), NOW_MS) == MAX_FAULTS + 2
    assert faults.seen() == {"disconnect": 0, "silent": 0}
