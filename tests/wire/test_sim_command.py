"""`klinesync sim` with a list of faults."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import pytest

from support.processes import in_process, running


async def test_a_list_of_faults_is_in_force_from_the_start(tmp_path: Path) -> None:
    script = tmp_path / "faults.json"
    script.write_text(
        json.dumps([{"kind": "unlisted", "symbols": ["ETHUSDT"]}, {"kind": "rest_error", "market": "futures"}])
    )
    async with running("sim", "--symbols=2", "--faults", str(script), log=tmp_path / "log") as exchange:
        url = await exchange.address("exchange")
        async with aiohttp.ClientSession() as http, http.get(f"{url}/sim/state") as answer:
            state = await answer.json()
        assert state["symbols"] == ["BTCUSDT"]
        assert [(fault["id"], fault["kind"]) for fault in state["faults"]] == [(1, "unlisted"), (2, "rest_error")]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (None, "cannot be read"),
        ("[{", "cannot be used"),
        ('{"kind": "silent"}', "Expected `array`"),
        ('[{"kind": "silent"}, {"kind": "late_closed", "delay_s": "long"}]', "$[1].delay_s"),
        ('[{"kind": "silent", "symbols": ["NOPE"]}]', "NOPE"),
    ],
)
def test_a_list_that_cannot_be_used_ends_the_command_with_a_sentence(
    tmp_path: Path, text: str | None, word: str
) -> None:
    script = tmp_path / "faults.json"
    if text is not None:
        script.write_text(text)
    code, out, errors = in_process("sim", "--symbols=2", "--faults", str(script))
    assert (code, out) == (1, "")
    assert word in errors
    assert "Traceback" not in errors
