"""Records the corpus again: `PYTHONPATH=tests python -m fuzz.record EXCHANGE_URL SERVICE_URL`, with the addresses that
`klinesync sim` and a `klinesync serve` on that exchange print. Payloads that found defects are kept."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import sys
import urllib.request
from pathlib import Path

import aiohttp

from fuzz import CORPUS
from support.candles import ohlcv
from support.history_files import write_archive, write_freqtrade

SERIES = "binance:spot:BTC/USDT:1m"
SYMBOLS = 3
# Live messages recorded per connection.
MESSAGES = 8


def main() -> None:
    """Record the answers of both."""
    exchange, service = sys.argv[1:]
    for market, prefix in (("spot", "/api/v3"), ("futures", "/fapi/v1")):
        base = f"{exchange}{prefix}"
        keep(f"rest_time_{market}", get(f"{base}/time"))
        keep(f"rest_klines_{market}", get(f"{base}/klines?symbol=BTCUSDT&interval=1m&limit=6"))
        if market == "spot":
            keep("rest_klines_month", get(f"{base}/klines?symbol=BTCUSDT&interval=1M&limit=6"))
        listed = json.loads(get(f"{base}/exchangeInfo"))
        listed["symbols"] = listed["symbols"][:SYMBOLS]
        keep(f"rest_exchangeInfo_{market}", json.dumps(listed).encode())
    tickers = json.loads(get(f"{exchange}/api/v3/ticker/24hr"))[:SYMBOLS]
    keep("rest_tickers", json.dumps(tickers).encode())
    for status, header in ((503, b""), (429, b"7"), (302, b"http://elsewhere/")):
        keep("rest_error", b"%d\n%b\n" % (status, header) + b'{"code":-1003,"msg":"Too many requests"}', str(status))
    record_answers(service)
    asyncio.run(record_streams(exchange, service))
    record_ccxt()
    record_files()
    record_texts()


def get(url: str) -> bytes:
    """The body of an answer."""
    with urllib.request.urlopen(url) as answer:
        body: bytes = answer.read()
        return body


def keep(target: str, payload: bytes, name: str = "") -> None:
    """Write a recorded payload of a target."""
    path = CORPUS / target / ("recorded" + (f"_{name}" if name else ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)


async def record_streams(exchange: str, service: str) -> None:
    """Record the messages that both push."""
    since = json.loads((CORPUS / "service_answer" / "recorded_candles").read_bytes())["candles"][0]["candle_time"]
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f"{exchange}/stream") as socket:
            await socket.send_json({"method": "SUBSCRIBE", "params": ["btcusdt@kline_1m"], "id": 1})
            await take("stream_frame", socket)
        keep("stream_frame", b'{"error":{"code":2,"msg":"Invalid request"},"id":1}', "error")
        keep("stream_frame", b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1}}', "shutdown")
        async with session.ws_connect(f"{service}/ws/market") as socket:
            subscription = {
                "type": "subscribe",
                "series_id": SERIES,
                "since": since,
                "ack": True,
                "supports_batch": True,
            }
            await socket.send_json(subscription)
            await take("service_message", socket)
        keep("client_message", json.dumps(subscription | {"what": ["closed", "forming"]}).encode(), "subscribe")
        keep("client_message", json.dumps({"type": "unsubscribe", "series_id": SERIES}).encode(), "unsubscribe")
        keep("client_message", b'{"type":"ping"}', "ping")


async def take(target: str, socket: aiohttp.ClientWebSocketResponse) -> None:
    """Keep the first message of each kind."""
    kinds: set[object] = set()
    for _ in range(MESSAGES):
        text = await socket.receive_str()
        message = json.loads(text)
        kind = message.get("type") or message.get("stream") or "answer"
        if kind not in kinds:
            kinds.add(kind)
            keep(target, text.encode(), f"{len(kinds)}")


def record_ccxt() -> None:
    """Values as ccxt decodes them from answers."""
    rows = json.loads((CORPUS / "rest_klines_spot" / "recorded").read_bytes())
    keep("ccxt", json.dumps([[row[0], *map(float, row[1:6])] for row in rows]).encode(), "rows")
    keep("ccxt", b"1764460800123", "time")
    market = {"base": "BTC", "quote": "USDT", "settle": None, "id": "BTCUSDT", "spot": True, "swap": False}
    swap = market | {"spot": False, "swap": True, "settle": "USDT", "active": True, "created": 1_569_398_400_000}
    keep("ccxt", json.dumps({"BTC/USDT": market, "BTC/USDT:USDT": swap}).encode(), "markets")
    keep("ccxt", b'{"BTC/USDT":{"last":1.5,"quoteVolume":10.0,"percentage":-3.0}}', "tickers")
    keep("header", b"Sun, 30 Nov 2025 00:00:00 GMT", "date")
    keep("header", b"120", "seconds")


def record_answers(service: str) -> None:
    """Record the answers of a service."""
    for name, path in {
        "candles": "market/candles?limit=4&",
        "health": "market/health?",
        "slices": "factor/slices?window_candles=3&indicators=EMA(5)&",
        "slices_after": "factor/slices_after?since=0&limit=2&",
        "drawings": "draw/delta?window_candles=60&indicators=EMA(5)&",
        "frame": "frame/live?window_candles=20&indicators=EMA(5)&",
        "catalogue": "factor/catalog?",
    }.items():
        keep("service_answer", get(f"{service}/api/{path}series_id={SERIES}"), name)
    keep("service_answer", b'{"detail":"series x is unknown","code":"unknown_series"}', "refusal")
    candles = json.loads((CORPUS / "service_answer" / "recorded_candles").read_bytes())["candles"]
    keep("http_body", json.dumps({"series_id": SERIES, "candles": candles}).encode())


def record_files() -> None:
    """Files of each kind, with a few candles."""
    rows = json.loads((CORPUS / "rest_klines_spot" / "recorded").read_bytes())
    candles = [ohlcv(row[0] // 1000, map(float, row[1:6])) for row in rows]
    for ending in ("feather", "parquet", "json"):
        path = write_freqtrade(Path("corpus.tmp") / f"BTC_USDT-1m.{ending}", candles)
        keep(f"file_{ending}", path.read_bytes())
    keep("file_json_gz", gzip.compress((CORPUS / "file_json" / "recorded").read_bytes(), mtime=0))
    archive = write_archive(Path("corpus.tmp") / "BTCUSDT-1m-2025-11-30.zip", candles, header=True)
    keep("file_zip", archive.read_bytes())
    keep("file_checksum", f"{hashlib.sha256(b'x').hexdigest()}  archive.zip\n".encode())
    lines = ["date,open,high,low,close,volume", *(",".join(map(str, candle)) for candle in candles)]
    keep("file_csv", ("\n".join(lines) + "\n").encode())
    keep("file_csv", ("sep=;\n" + "\n".join(lines).replace(",", ";") + "\n").encode(), "excel")
    keep("file_whitelist", json.dumps({"series_ids": [SERIES]}).encode())
    keep("file_toml", b'port = 8001\nlog_level = "debug"\nindicators = "EMA(21),RSI(14)"\n')
    keep("file_env", b"export KLINESYNC_PORT=8001\nKLINESYNC_WHITELIST='binance:spot:BTC/USDT:1m'\n")
    keep("stored", b'{"pid":12,"command":"serve","since":"2025-11-30T00:00:00Z"}', "lock")
    listing = {"symbol": "BTC/USDT", "symbol_id": "BTCUSDT", "base_asset": "BTC", "quote_asset": "USDT"}
    keep(
        "stored", json.dumps([listing | {"status": "TRADING", "onboard_s": None, "kind": "spot"}]).encode(), "listings"
    )


def record_texts() -> None:
    """Short texts as people and programs write them."""
    for name, text in {
        "series": SERIES,
        "contract": "binance:futures:BTC/USDT:USDT-250328:1m",
        "time": "2025-11-30T08:00:00.5+01:00",
        "seconds": "1764460800",
        "indicators": "EMA(21),MACD(12,26,9),BBANDS(20,2.0)",
        "origin": "https://user:secret@chart.example:8443/path?query",
        "address": "http://[::1]:8000",
        "accept": "br;q=0.9, gzip;q=0.5, *;q=0",
        "freqtrade": "BTC_USDT_USDT-1m-futures.feather",
        "archive": "data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2025-11-30.zip",
    }.items():
        keep("text", text.encode(), name)
    for name, text in {"origin": "http://chart.example", "bearer": "Bearer a token of some length"}.items():
        keep("request_head", text.encode(), name)
    keep("request_head", b"cross-site", "site")
    keep("request_head", b"[::1]:8000", "host")


if __name__ == "__main__":
    main()
