"""The sources of flags, the sentences of refused values, and masked secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klinesync.core.errors import BadFlag
from klinesync.runtime.flag_groups import FLAG_GROUPS
from klinesync.runtime.flag_sources import MAX_CONFIG_BYTES
from klinesync.runtime.flag_values import allowed, endpoint, is_secret, masked
from klinesync.runtime.flags import RuntimeFlags, load_flags, read_configuration

TOKEN = "s3cret-s3cret-s3cret"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KLINESYNC_PORT", "tcp://10.96.0.17:8000"),
        ("KLINESYNC_SERVICE_HOST", "10.96.0.17"),
        ("KLINESYNC_SERVICE_PORT", "8000"),
        ("KLINESYNC_SERVICE_PORT_HTTP", "8000"),
        ("KLINESYNC_PORT_8000_TCP", "tcp://10.96.0.17:8000"),
        ("KLINESYNC_PORT_8000_TCP_PROTO", "tcp"),
        ("KLINESYNC_PORT_8000_TCP_ADDR", "10.96.0.17"),
        ("KLINESYNC_API_PORT", "tcp://10.96.0.17:8000"),
        ("KLINESYNC_API_SERVICE_HOST", "10.96.0.17"),
        ("KLINESYNC_API_PORT_8000_TCP", "tcp://10.96.0.17:8000"),
        ("KLINESYNC_NAME", "/web/klinesync"),
        ("KLINESYNC_ENV_PATH", "/usr/bin"),
    ],
)
def test_variables_of_an_orchestrator_are_ignored_with_one_log_line(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variable, value)
    with caplog.at_level("INFO"):
        assert load_flags().port == 8000
    (line,) = caplog.records
    assert variable in line.getMessage()


@pytest.mark.parametrize("variable", ["KLINESYNC_PROT", "KLINESYNC_API_TOKN", "KLINESYNC_PORTAL", "KLINESYNC_SERVICES"])
def test_a_name_that_only_resembles_an_orchestrators_is_an_unknown_flag(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "8000")
    with pytest.raises(BadFlag, match=f"flag {variable}: there is no such flag"):
        load_flags()


def test_a_mistyped_name_gets_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLINESYNC_PROT", "8000")
    with pytest.raises(BadFlag, match="did you mean KLINESYNC_PORT"):
        load_flags()


def test_the_environment_beats_env_file_beats_toml(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("klinesync.toml").write_text("port = 8001\nretention_days = 3\n")
    assert read_configuration().source("port") == "klinesync.toml"
    Path(".env").write_text("# ours\nexport KLINESYNC_PORT='8002' # the second\nOTHER=1\nKLINESYNC_HOST=localhost\n")
    found = read_configuration()
    assert (found.flags.port, found.source("port")) == (8002, ".env")
    assert (found.flags.host, found.flags.retention_days) == ("localhost", 3)
    monkeypatch.setenv("KLINESYNC_PORT", "8003")
    found = read_configuration()
    assert (found.flags.port, found.source("port")) == (8003, "environment")


def test_a_value_of_an_env_file_is_taken_literally() -> None:
    Path(".env").write_text(f'KLINESYNC_API_TOKEN="${{HOME}}$X{TOKEN}"\n')
    assert load_flags().api_token == f"${{HOME}}$X{TOKEN}"


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        (".env", "KLINESYNC_PROT=1\n", "flag KLINESYNC_PROT: there is no such flag"),
        (".env", "A=1\nKLINESYNC_PORT\n", r"flag .env: cannot be read: line 2 is not NAME=value"),
        (".env", "KLINESYNC_API_TOKEN='s3cret-s3cret-s3cret\n", r"flag .env: cannot be read: line 1"),
        ("klinesync.toml", "port = \n", "flag klinesync.toml: cannot be read"),
        ("klinesync.toml", "#" * (MAX_CONFIG_BYTES + 1), "flag klinesync.toml: is larger than"),
        (".env", "#" * (MAX_CONFIG_BYTES + 1), "flag .env: is larger than"),
    ],
)
def test_a_file_that_cannot_be_read_stops_the_start_with_its_name(name: str, text: str, word: str) -> None:
    Path(name).write_text(text)
    with pytest.raises(BadFlag, match=word) as refused:
        load_flags()
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("name", [".env", "klinesync.toml"])
def test_text_that_is_not_utf_8_stops_the_start_and_a_folder_of_that_name_does_not(name: str) -> None:
    Path(name).mkdir()
    load_flags()
    Path(name).rmdir()
    Path(name).write_bytes(b"KLINESYNC_HOST=\xff\xfe")
    with pytest.raises(BadFlag, match=f"flag {name}: cannot be read: it is not UTF-8"):
        load_flags()


def test_lines_of_other_programs_in_an_env_file_are_ignored() -> None:
    Path(".env").write_text("WHAT IS THIS\nKLINESYNC_PORT=8004\n")
    assert load_flags().port == 8004


def test_the_sentence_about_a_wrong_value_has_flag_value_source_and_allowed_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def sentence(**command_line: str) -> str:
        with pytest.raises(BadFlag) as refused:
            load_flags(command_line)
        return str(refused.value)

    port = "is refused; allowed: a whole number from 0 to 65535"
    assert sentence(port="70000") == f"flag port: '70000' from the command line (--port) {port}"
    monkeypatch.setenv("KLINESYNC_PORT", "x")
    assert sentence() == f"flag port: 'x' from the environment (KLINESYNC_PORT) {port}"
    monkeypatch.delenv("KLINESYNC_PORT")
    Path("klinesync.toml").write_text('log_level = "loud"\n')
    words = "is refused; allowed: debug, info, warning or error"
    assert sentence() == f"flag log_level: 'loud' from klinesync.toml (log_level) {words}"
    Path(".env").write_text("KLINESYNC_LOG_LEVEL=quiet\n")
    assert sentence() == f"flag log_level: 'quiet' from .env (KLINESYNC_LOG_LEVEL) {words}"
    Path(".env").write_text("KLINESYNC_LOG_LEVEL=info\n")
    assert "'no' from" not in sentence(rest_final_margin_s="-1", enable_debug_api="no")
    assert sentence(stream_stale_s="0").endswith("allowed: a number above 0")
    assert sentence(binance_rest_weight_share="2").endswith("allowed: a number above 0, at most 1")
    assert sentence(enable_debug_api="maybe").endswith("allowed: on or off")


def test_every_flag_describes_its_allowed_values() -> None:
    for name, field in RuntimeFlags.model_fields.items():
        assert allowed(field), name
        assert "=" not in allowed(field), name


@given(st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=15))
def test_a_secret_appears_in_no_sentence_and_no_row(token: str) -> None:
    token = f"~{token}~"[:15]
    with pytest.raises(BadFlag) as refused:
        load_flags({"api_token": token})
    assert token not in str(refused.value)
    assert "16 characters" in str(refused.value)
    rows = {row.name: row for row in read_configuration({"api_token": TOKEN}).rows()}
    assert rows["api_token"].value == "***"
    assert TOKEN not in str(list(rows.values()))


def test_flags_that_are_secret_by_name_are_marked_secret() -> None:
    for name, field in RuntimeFlags.model_fields.items():
        assert is_secret(field) == any(word in name for word in ("token", "secret", "password")), name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:pass@db:5432/x", "postgresql://***@db:5432/x"),
        ("postgresql://db/x?user=me&password=pass&sslmode=on", "postgresql://db/x?user=me&password=***&sslmode=on"),
        ("nats://pass@bus:4222,nats://me:pass@bus2", "nats://***@bus:4222,nats://***@bus2"),
        ("https://me:p@ss@host/a@b", "https://***@host/a@b"),
        ("binance:spot:BTC/USDT:1m", "binance:spot:BTC/USDT:1m"),
        ("sqlite:////home/me@work/x.sqlite", "sqlite:////home/me@work/x.sqlite"),
    ],
)
def test_the_password_of_an_address_is_masked(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_the_password_of_a_refused_address_is_not_shown() -> None:
    for name, value in (("database_url", "postgresql://me:hunter2@db/x"), ("broker_url", "nats://me:hunter2@bus")):
        with pytest.raises(BadFlag) as refused:
            load_flags({name: value})
        assert "hunter2" not in str(refused.value)
        assert all("hunter2" not in row.value for row in read_configuration({name: value}).rows())


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://api.binance.com/api/v3", "it has a path"),
        ("https://api.binance.com?x=1", "it has a path"),
        ("https://", "it has no host"),
        ("https://:8443", "it has no host"),
        ("https://.", "can be no host"),
        ("https:api.binance.com", "it does not begin with"),
        ("ftp://api.binance.com", "it does not begin with"),
        ("https://api.binance.com:99999", "it cannot be an address"),
        ("https://api.binance.com:0", "it has port 0"),
        ("https://api. binance.com", "spaces"),
        ("https://[::1", "it cannot be an address"),
        (f"https://{'a' * 64}.com", "can be no host"),
    ],
)
def test_an_endpoint_with_a_path_or_without_a_host_is_refused(url: str, reason: str) -> None:
    for name in ("binance_spot_rest_url", "binance_futures_rest_url"):
        with pytest.raises(BadFlag, match=reason) as refused:
            load_flags({name: url})
        assert str(refused.value).startswith(f"flag {name}: ")
        assert "allowed: http:// or https://" in str(refused.value)
    with pytest.raises(BadFlag, match=reason):
        load_flags({"binance_spot_ws_url": url.replace("https:", "wss:")})


@given(st.text())
def test_any_text_is_an_endpoint_or_refused(text: str) -> None:
    for candidate in (text, f"https://{text}"):
        try:
            found = endpoint(candidate, "https")
        except ValueError:
            continue
        assert endpoint(found, "https") == found


def test_a_slash_at_the_end_of_an_endpoint_is_no_path() -> None:
    assert load_flags({"binance_spot_rest_url": "http://127.0.0.1:9000/"}).binance_spot_rest_url == (
        "http://127.0.0.1:9000"
    )


def test_an_archive_is_a_folder_or_an_address_with_a_host() -> None:
    assert load_flags({"archive_url": "https://data.binance.vision/data"}).archive_url is not None
    assert load_flags({"archive_url": "/var/archive"}).archive_url == "/var/archive"
    for wrong in ("https://", "ftp://host/data", ""):
        with pytest.raises(BadFlag, match="flag archive_url"):
            load_flags({"archive_url": wrong})


def test_every_flag_is_in_one_group() -> None:
    grouped = [name for names in FLAG_GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(RuntimeFlags.model_fields)


def test_wrong_values_become_defaults_and_all_problems_are_reported() -> None:
    Path("klinesync.toml").write_text('port = "x"\nrole = "serve"\nprot = 1\n')
    found = read_configuration({"retention_days": "-1"})
    assert (found.flags.port, found.flags.retention_days) == (8000, 0)
    assert sorted(problem.name for problem in found.problems) == ["port", "prot", "retention_days", "role"]


def test_a_default_in_place_of_a_refused_value_has_the_source_default() -> None:
    Path("klinesync.toml").write_text('port = "x"\nrole = "serve"\nhost = "::1"\n')
    sources = {row.name: (row.value, row.source) for row in read_configuration({"retention_days": "-1"}).rows()}
    assert sources["port"] == ("8000", "default")
    assert sources["retention_days"] == ("0", "default")
    assert sources["host"] == ("::1", "klinesync.toml")
