"""The program as people and scripts use it: help, usage errors, completion, pipes, and closed or full output."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from klinesync.cli.program import SUMMARIES, command_of, command_parser, parser
from klinesync.runtime.flag_groups import FLAG_GROUPS
from klinesync.runtime.flags import RuntimeFlags
from support.processes import environment, in_process, klinesync

PROGRAM = f"{sys.executable} -m klinesync"


def shell(line: str, cwd: Path) -> tuple[int, str, str]:
    """A line of bash in which KLINESYNC stands for the program."""
    done = subprocess.run(
        ["bash", "-c", line.replace("KLINESYNC", PROGRAM)],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        cwd=cwd,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def options_of(text: str) -> set[str]:
    return set(re.findall(r"^ +(--[a-z0-9-]+)", text, re.MULTILINE))


def options(*flags: str) -> set[str]:
    return {"--" + name.replace("_", "-") for name in flags}


# --- help


def test_help_of_serve_has_purpose_example_and_flags_in_groups_with_defaults() -> None:
    code, out, errors = in_process("serve", "--help")
    assert (code, errors) == (0, "")
    parts = ["usage: klinesync serve", "Run the service", "example:", "klinesync serve --port"]
    parts += [f"{group} flags:" for group in FLAG_GROUPS]
    found = [out.index(part) for part in parts]
    assert found == sorted(found)
    assert options_of(out) == options(*RuntimeFlags.model_fields)
    assert "(default 8000)" in out
    assert "--log-level {debug,info,warning,error}" in out
    assert "--enable-debug-api {on,off}" in out


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_command_has_an_example_that_parses_and_lists_its_own_flags_alone(name: str) -> None:
    command = command_of(name)
    assert command.examples
    for example in command.examples:
        words = re.sub(r'^eval "\$\(|\)"$| > .*', "", example).split()
        assert words[:2] == ["klinesync", name]
        parser().parse_args(words[1:])
    text = command_parser(parser(), name).format_help()
    own = {action.option_strings[-1] for action in command_parser(parser(), name)._actions if action.option_strings}
    flags = RuntimeFlags.model_fields if command.flags == "all" else command.flags or ()
    assert options_of(text) & options(*RuntimeFlags.model_fields) - {"--port"} == options(*flags) - {"--port"}
    assert options(*flags) <= own


def test_help_of_demo_has_the_defaults_of_the_demo() -> None:
    text = " ".join(command_parser(parser(), "demo").format_help().split())
    for default in ("a free port", "a temporary file", "the first 20 symbols of each market of the exchange"):
        assert f"(default {default})" in text
    assert "klinesync.sqlite" not in text


def test_help_of_the_program_names_every_command_and_imports_none() -> None:
    code, out, _ = klinesync("--help")
    assert code == 0
    for name in SUMMARIES:
        assert re.search(rf"^ +{name}\b", out, re.MULTILINE)
    look = "import sys; from klinesync.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=60)
    assert not {"pydantic", "numpy", "fastapi", "aiohttp", "asyncio", "rich"} & set(done.stderr.split())


def test_what_asks_a_running_service_loads_no_library_of_files_or_numbers() -> None:
    look = "import sys, klinesync.cli.service_client; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=60)
    assert not {"numpy", "pyarrow", "talib", "fastapi"} & set(loaded.stdout.split())


# --- usage errors


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["srve"], "klinesync: there is no command 'srve'; did you mean serve?"),
        (["serve", "--prot", "8001"], "klinesync serve: there is no option --prot; did you mean --port?"),
        (["serve", "--api-tokn=s3cret"], "klinesync serve: there is no option --api-tokn; did you mean --api-token?"),
        (["serve", "--api-tokn", "s3cret"], "klinesync serve: there is no option --api-tokn; did you mean"),
        (["backup", "a", "b"], "klinesync backup: 'b' is an unexpected argument"),
        (["export", "binance:spot:BTC/USDT:1m", "--format", "xls", "--output", "x"], "klinesync export: --format:"),
        (["backfill", "BTCUSDT", "--from", "2025-01-01"], "klinesync backfill: SERIES_ID: series_id 'BTCUSDT'"),
        (["watch", "binance:spot:BTC/USDT:1m", "--full"], "klinesync watch: --full belongs to --json"),
        (["watch", "BTCUSDT"], "klinesync watch: SERIES_ID: series_id 'BTCUSDT'"),
        (["verify", "BTCUSDT"], "klinesync verify: SERIES_ID: series_id 'BTCUSDT'"),
        (["serve", "--port", "x"], "klinesync serve: flag port: 'x' from the command line (--port)"),
        (["serve", "--indicators", "NOPE(3)", "--port=0"], "klinesync serve: flag indicators:"),
        (["backup", "x", "--database-url", "x"], "klinesync backup: flag database_url: 'x'"),
        (["demo", "--speed", "fast"], "klinesync demo: --speed: 'fast' is not a positive number"),
        ([], "klinesync: the following arguments are required: COMMAND"),
        (["backfill", "--from", "2025-01-01"], "klinesync backfill: the following arguments are required: SERIES_ID"),
        (["backfill", "binance:spot:BTC/USDT:1m"], "klinesync backfill: the following arguments are required: --from"),
        (["backfill", "--enrich", "--source", "rest"], "klinesync backfill: --enrich reads the archive"),
        (
            ["demo", "--binance-spot-rest-url", "http://127.0.0.1:1"],
            "klinesync demo: --binance-spot-rest-url cannot be",
        ),
    ],
)
def test_a_usage_error_is_one_line_and_a_hint_with_status_2(arguments: list[str], sentence: str) -> None:
    code, out, errors = in_process(*arguments)
    assert (code, out) == (2, "")
    told, hint = errors.splitlines()
    assert told.startswith(sentence)
    assert hint == f"see: {told.partition(':')[0]} --help"
    assert "s3cret" not in errors


@pytest.mark.parametrize(
    ("flag", "arguments"),
    [
        ("freqtrade_data_dir", ("--market-history-source", "freqtrade", "--freqtrade-data-dir")),
        ("archive_url", ("--archive-url",)),
    ],
)
def test_a_folder_of_history_that_does_not_exist_stops_the_start(
    flag: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    missing = tmp_path / "fretrade"
    url = f"sqlite:///{tmp_path}/store.sqlite"
    code, _, errors = in_process("serve", "--port=0", "--database-url", url, *arguments, str(missing))
    assert (code, errors.splitlines()[0]) == (2, f"klinesync serve: flag {flag}: there is no folder {missing}")
    assert not (tmp_path / "store.sqlite").exists()


def test_a_wrong_value_of_the_environment_is_a_failure_and_no_wrong_use() -> None:
    code, _, errors = in_process("serve", env={"KLINESYNC_PORT": "x"})
    assert code == 1
    assert errors.startswith("klinesync: flag port: 'x' from the environment (KLINESYNC_PORT) is refused")


# --- the flags command


def test_flags_works_with_a_wrong_configuration_and_shows_no_secret(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("KLINESYNC_PORT=x\nKLINESYNC_API_TOKEN=s3cret-s3cret-s3cret\n")
    (tmp_path / "klinesync.toml").write_text('indicators = "NOPE(3)"\nprot = 1\n')
    env = {"KLINESYNC_SERVICE_HOST": "10.0.0.1", "KLINESYNC_DATABASE_URL": "postgresql://me:s3cret@db/x"}
    code, out, errors = klinesync("flags", env=env, cwd=tmp_path)
    assert code == 0
    assert "port = 8000" in out
    assert out.count("WRONG") == 3
    for word in ("flag port: 'x' from .env", "flag indicators:", "flag database_url:", "flag prot:"):
        assert word in errors
    assert "KLINESYNC_SERVICE_HOST" in errors
    assert "api_token = ***  [.env]" in out
    assert "s3cret" not in out + errors
    code, out, errors = in_process("flags", "--json", env=env)
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["port"]["problem"].startswith("flag port")
    assert rows["host"]["problem"] is None
    assert "s3cret" not in out + errors


# --- completion


def completed(words: list[str], tmp_path: Path) -> list[str]:
    """The completions that bash offers for the last word."""
    script = tmp_path / "completion.bash"
    if not script.exists():
        code, out, errors = in_process("completion", "bash")
        assert (code, errors) == (0, "")
        script.write_text(out)
    quoted = " ".join(f"'{word}'" for word in words)
    line = (
        f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMP_LINE='{' '.join(words)}'; "
        "call=$(complete -p klinesync | sed 's/.*-F \\([^ ]*\\).*/\\1/'); "
        '$call klinesync "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    code, out, errors = shell(line, tmp_path)
    assert (code, errors) == (0, "")
    return out.split()


def test_bash_completes_commands_options_and_choices(tmp_path: Path) -> None:
    assert set(completed(["klinesync", ""], tmp_path)) >= set(SUMMARIES)
    assert completed(["klinesync", "ver"], tmp_path) == ["verify"]
    assert completed(["klinesync", "backup", "--data"], tmp_path) == ["--database-url"]
    assert completed(["klinesync", "serve", "--log-l"], tmp_path) == ["--log-level"]
    assert completed(["klinesync", "serve", "--log-level", ""], tmp_path) == ["debug", "info", "warning", "error"]
    assert completed(["klinesync", "export", "--format", ""], tmp_path) == ["parquet", "feather", "csv"]
    assert "--indicators" not in completed(["klinesync", "backup", "--"], tmp_path)


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_other_shells_get_a_script_of_their_own(name: str) -> None:
    code, out, errors = in_process("completion", name)
    assert (code, errors) == (0, "")
    assert "klinesync" in out
    assert "database-url" in out
    assert ("#compdef" in out) == (name == "zsh")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


async def _answers(http: aiohttp.ClientSession, url: str, process: asyncio.subprocess.Process) -> None:
    """Wait until the address answers 200, or the process has ended."""
    async with asyncio.timeout(60):
        while process.returncode is None:
            try:
                async with http.get(url) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
    pytest.fail(f"it ended with {process.returncode}")


# --- output that is closed, full, or not read


def test_a_flag_of_a_file_sends_nothing_to_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "klinesync.toml").write_text('freqtrade_data_dir = "/a\\u001b[31m\\nport = 1"\n')
    code, out, errors = in_process("flags")
    assert (code, errors) == (0, "")
    assert "freqtrade_data_dir = /a\\x1b[31m\\nport = 1  [klinesync.toml]" in out
    assert all(line.isprintable() for line in out.splitlines())


@pytest.mark.parametrize("command", ["flags", "flags --json", "--help", "serve --help", "completion bash", "verify"])
def test_a_pipe_without_a_reader_ends_no_command(command: str, tmp_path: Path) -> None:
    store = f"--database-url=sqlite:///{tmp_path}/store.sqlite" if command == "verify" else ""
    if store:
        assert in_process("import", "none.csv", store)[0] == 1
    # `true` ends without reading a byte: the pipe is broken before the first write.
    code, _, errors = shell(f"KLINESYNC {command} {store} | true; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert "Traceback" not in errors
    assert "roken pipe" not in errors
    if command != "verify":
        assert (code, errors) == (0, "")


@pytest.mark.parametrize("command", ["flags", "serve --help", "--version", "completion zsh"])
@pytest.mark.parametrize(
    ("where", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_output_that_cannot_be_written_is_one_sentence_and_status_1(
    command: str, where: str, reason: str, tmp_path: Path
) -> None:
    code, _, errors = shell(f"KLINESYNC {command} {where}", tmp_path)
    assert errors == f"klinesync: standard output cannot be written: {reason}\n"
    assert code == 1
    code, _, errors = shell(f"KLINESYNC {command} {where} 2>&-", tmp_path)
    assert (code, errors) == (1, "")


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-", "<&- 2>&-"])
def test_a_failure_has_its_status_without_stderr(where: str, tmp_path: Path) -> None:
    assert shell(f"KLINESYNC backup x --database-url=sqlite:///{tmp_path}/none {where}", tmp_path)[0] == 1
    assert shell(f"KLINESYNC fly {where}", tmp_path)[0] == 2


@pytest.mark.parametrize("where", [">&- 2>&- <&-", ">&-", "2>&-", ">/dev/full 2>/dev/full", "> >(true) 2> >(true)"])
async def test_a_service_serves_and_stops_cleanly_without_output(where: str, tmp_path: Path) -> None:
    port = free_port()
    flags = f"--port {port} --database-url sqlite:///{tmp_path}/s.sqlite --enable-whitelist-ingest off --log-level info"
    line = f"exec {PROGRAM} serve {flags} {where}"
    process = await asyncio.create_subprocess_exec("bash", "-c", line, env=environment(), cwd=tmp_path)
    try:
        async with aiohttp.ClientSession() as http:
            url = f"http://127.0.0.1:{port}"
            await _answers(http, f"{url}/readyz", process)
            for _ in range(3):
                async with http.get(f"{url}/api/market/whitelist") as answer:
                    assert answer.status == 200
                async with http.get(f"{url}/api/nothing") as answer:
                    assert answer.status == 404
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
