"""The page in a real browser, against the real service in a process of its own.

One long file: its tests share a browser and a demo, whose start takes longer than a test.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright.sync_api import Browser, ConsoleMessage, Page, Route, WebSocketRoute, expect, sync_playwright

from klinesync.overlay.structure import PEN_COLOR, RESISTANCE_COLOR

CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Timeout of every wait, in seconds: a machine under load is slow, and a wait ends as soon as its condition holds.
PATIENCE_S = 60
STEP_S = 60
BTC = "binance:spot:BTC/USDT:1m"
ETH = "binance:spot:ETH/USDT:1m"

# Records every state that the page publishes on its root element, in order.
RECORDER = """
window.states = [];
new MutationObserver(() => {
  const { state, series, candles, first, lastClosed, lastForming, lastPrice, gaps } = document.documentElement.dataset;
  window.states.push({ state, series, candles: Number(candles), first: Number(first), lastClosed: Number(lastClosed),
                     lastForming: Number(lastForming), lastPrice: Number(lastPrice), gaps: Number(gaps) });
}).observe(document, { attributes: true, subtree: true,
                       attributeFilter: ["data-state", "data-candles", "data-last-closed", "data-last-price"] });
"""

A_FORMING_CANDLE_MOVED_AND_CLOSED = """
() => {
  const prices = new Map();
  for (const { lastForming, lastPrice } of window.states)
    if (lastForming) prices.set(lastForming, (prices.get(lastForming) ?? new Set()).add(lastPrice));
  const lastClosed = Number(document.documentElement.dataset.lastClosed);
  return [...prices].some(([time, values]) => values.size > 1 && time <= lastClosed);
}
"""

# Pixels of the chart's canvases that have one of the two colours of candle bodies.
COUNT_CANDLE_PIXELS = """
() => {
  const colour = (name) => {
    const probe = document.createElement("span");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const channels = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
    probe.remove();
    return channels;
  };
  const wanted = [colour("up"), colour("down")];
  const counts = [0, 0];
  for (const canvas of document.querySelectorAll("#chart canvas")) {
    if (canvas.width === 0 || canvas.height === 0) continue;
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    for (let at = 0; at < data.length; at += 4)
      wanted.forEach(([red, green, blue], index) => {
        if (data[at] === red && data[at + 1] === green && data[at + 2] === blue) counts[index] += 1;
      });
  }
  return counts;
}
"""

# Pixels of the chart's canvases in each of these colours.
COUNT_DRAWING_PIXELS = """
(colours) => {
  const counts = colours.map(() => 0);
  for (const canvas of document.querySelectorAll("#chart canvas")) {
    if (canvas.width === 0 || canvas.height === 0) continue;
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    for (let at = 0; at < data.length; at += 4) {
      const colour = (data[at] << 16) | (data[at + 1] << 8) | data[at + 2];
      colours.forEach((wanted, index) => { if (colour === wanted) counts[index] += 1; });
    }
  }
  return counts;
}
"""


@dataclass
class Facts:
    """The facts that the page publishes on its root element."""

    state: str
    series: str
    candles: int
    first: int
    last_closed: int
    gaps: int

    @property
    def without_gap_or_duplicate(self) -> bool:
        return self.gaps == 0 and self.candles == (self.last_closed - self.first) // STEP_S + 1


@dataclass
class Visit:
    """A page, and the errors and warnings of its console."""

    page: Page
    console_errors: list[str] = field(default_factory=list)

    def open(self, url: str, series: str | None = None) -> None:
        self.page.goto(url if series is None else f"{url}?series={series}")

    def wait_for(self, condition: str) -> None:
        """Waits until the JavaScript expression holds; `data` has the root element's data attributes."""
        script = f"() => {{ const data = document.documentElement.dataset; return {condition}; }}"
        self.page.wait_for_function(script)

    def wait_until_live(self, series: str) -> None:
        self.wait_for(f"data.state === 'live' && data.series === '{series}' && Number(data.candles) > 0")

    def facts(self) -> Facts:
        data = self.page.evaluate("() => ({...document.documentElement.dataset})")
        assert isinstance(data, dict)
        return Facts(
            state=str(data["state"]),
            series=str(data["series"]),
            candles=int(data["candles"]),
            first=int(data["first"]),
            last_closed=int(data["lastClosed"]),
            gaps=int(data["gaps"]),
        )


@dataclass(frozen=True)
class Running:
    """A klinesync process and the address it printed."""

    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> str:
        return self.url.rstrip("/").rsplit(":", 1)[1]


@contextmanager
def klinesync(folder: Path, announced: str, *arguments: str) -> Iterator[Running]:
    """Run a command of klinesync until the block ends; the command prints its address after the text `announced`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KLINESYNC_")}
    with (
        (folder / f"{arguments[0]}.log").open("a") as log,
        subprocess.Popen(
            [sys.executable, "-m", "klinesync", *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=folder,
            env=environment,
        ) as process,
    ):
        try:
            yield Running(process, _announced_url(process, announced, log.name))
        finally:
            process.kill()


def _announced_url(process: subprocess.Popen[str], announced: str, log: str) -> str:
    assert process.stdout is not None
    # A process that prints no address is killed, which ends the loop over its lines.
    limit = threading.Timer(PATIENCE_S, process.kill)
    limit.start()
    try:
        for line in process.stdout:
            found = re.search(rf"{announced} (http://\S+)", line)
            if found:
                return found[1]
    finally:
        limit.cancel()
    pytest.fail(f"no address was printed; the log says:\n{Path(log).read_text()}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = os.environ.get("KLINESYNC_CHROMIUM") or shutil.which("chromium")
    if not executable:
        pytest.skip("no browser: KLINESYNC_CHROMIUM names none, and there is no chromium on the path")
    if not (Path(str(resources.files("klinesync"))) / "web" / "index.html").exists():
        pytest.skip("the page is not built: run `npm ci && npm run build` in frontend/")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        yield running
        running.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A page of its own; the test fails when its console has errors that the test did not expect."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="dark")
    context.set_default_timeout(PATIENCE_S * 1000)
    page = context.new_page()
    page.add_init_script(RECORDER)
    visited = Visit(page)

    def record(message: ConsoleMessage) -> None:
        # Chromium reports every error status; this status means that the ledgers lag, and the page retries.
        catching_up = "409" in message.text and "/api/draw/delta" in message.location["url"]
        if message.type in ("error", "warning") and not catching_up:
            visited.console_errors.append(message.text)

    page.on("console", record)
    page.on("pageerror", lambda error: visited.console_errors.append(str(error)))
    yield visited
    # Routes may still be answering requests of the page.
    page.unroute_all(behavior="ignoreErrors")
    context.close()
    assert visited.console_errors == []


@pytest.fixture(scope="module")
def demo(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`klinesync demo`, one exchange minute per second, with small pivot windows, so that every view has pivots."""
    folder = tmp_path_factory.mktemp("demo")
    windows = ("--factor-pivot-window-major", "12", "--factor-pivot-window-minor", "4")
    arguments = ("demo", "--no-browser", "--port", "0", "--speed", "60", "--symbols", "3", *windows)
    with klinesync(folder, "klinesync serves", *arguments) as running:
        yield running


def test_history_is_drawn_and_the_forming_candle_is_updated_and_closes(visit: Visit, demo: Running) -> None:
    visit.open(demo.url, BTC)
    visit.wait_until_live(BTC)
    before = visit.facts()
    visit.page.wait_for_function(A_FORMING_CANDLE_MOVED_AND_CLOSED)
    visit.wait_for(f"Number(data.lastClosed) >= {before.last_closed + 5 * STEP_S}")

    after = visit.facts()
    assert after.without_gap_or_duplicate
    assert after.candles == before.candles + (after.last_closed - before.last_closed) // STEP_S
    up, down = visit.page.evaluate(COUNT_CANDLE_PIXELS)
    assert up > 200
    assert down > 200

    closed = [moment["lastClosed"] for moment in visit.page.evaluate("() => window.states") if moment["lastClosed"]]
    assert closed == sorted(closed)


def test_a_series_is_chosen_by_keyboard_and_stays_in_the_address(visit: Visit, demo: Running) -> None:
    page = visit.page
    visit.open(demo.url, BTC)
    visit.wait_until_live(BTC)
    page.keyboard.press("/")
    expect(page.get_by_role("combobox")).to_be_focused()
    page.keyboard.type("eth spot")
    expect(page.get_by_role("option", selected=True)).to_contain_text("ETH/USDT")
    page.keyboard.press("Enter")
    visit.wait_until_live(ETH)
    assert page.url == f"{demo.url}?series={ETH}"
    assert visit.facts().without_gap_or_duplicate

    page.reload()
    visit.wait_until_live(ETH)
    page.go_back()
    visit.wait_until_live(BTC)
    assert page.url == f"{demo.url}?series={BTC}"


def test_scrolling_back_joins_older_candles(visit: Visit, demo: Running) -> None:
    visit.open(demo.url, BTC)
    visit.wait_until_live(BTC)
    before = visit.facts()
    visit.page.get_by_role("application").focus()
    visit.page.keyboard.press("Home")
    visit.wait_for(f"Number(data.first) < {before.first}")
    assert visit.facts().without_gap_or_duplicate
    expect(visit.page.get_by_role("button", name="Go to the newest candle")).to_be_visible()
    visit.page.keyboard.press("End")
    expect(visit.page.get_by_role("button", name="Go to the newest candle")).to_be_hidden()


def test_home_shows_the_first_stored_candle_with_indicators_and_scrolling_back_leaves_no_gap(
    visit: Visit, demo: Running
) -> None:
    requests: list[dict[str, str]] = []

    def record(route: Route) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        requests.append({name: values[0] for name, values in query.items()})
        route.continue_()

    visit.page.route("**/api/draw/delta?*", record)
    visit.open(demo.url, BTC)
    visit.wait_until_live(BTC)
    visit.wait_for("data.drawing === 'ready' && Number(data.lines) > 0")
    assert all("at_time" not in query for query in requests), "a page that is not in view"
    visit.page.get_by_role("application").focus()
    for _ in range(4):
        visit.page.keyboard.press("ArrowDown")
    visit.page.keyboard.press("Home")
    visit.wait_for("data.viewFrom === data.first && Number(data.drawnPages) > 0")
    visit.wait_for(f"Number(data.viewTo) - Number(data.viewFrom) > {200 * STEP_S}")
    first = visit.facts().first
    for _ in range(200):  # the page of the first candles may be requested a moment later
        pages = [query for query in requests if "at_time" in query]
        if any(int(page["at_time"]) - int(page["window_candles"]) * STEP_S <= first for page in pages):
            break
        visit.page.wait_for_timeout(50)
    else:
        pytest.fail(f"the drawings of the first candles were never requested: {pages}")
    visit.wait_for("Number(data.drawings) > 3")
    for _ in range(40):
        if visit.page.get_by_role("button", name="Go to the newest candle").is_hidden():
            break
        visit.page.keyboard.press("PageDown")
        visit.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    assert visit.facts().without_gap_or_duplicate
    visit.page.keyboard.press("End")
    visit.wait_for("Number(data.lastForming) > 0")
    facts = visit.facts()
    assert facts.without_gap_or_duplicate


def test_the_view_stays_in_the_past_when_many_candles_arrive(visit: Visit, demo: Running) -> None:
    """The page first gets a history that ends long ago, as from a service that is still filling its store."""
    page, held = visit.page, 300
    waiting: list[tuple[WebSocketRoute, str | bytes]] = []
    holding = True

    def on_socket(socket: WebSocketRoute) -> None:
        # With a handler for the server's messages, only the page's messages are still forwarded automatically.
        server = socket.connect_to_server()
        server.on_message(lambda text: waiting.append((socket, text)) if holding else socket.send(text))

    def on_history(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        body["candles"] = [] if "before=" in route.request.url else body["candles"][:held]
        route.fulfill(response=answer, json=body)

    page.route_web_socket(re.compile("/ws/"), on_socket)
    page.route("**/api/market/candles*", on_history)
    visit.open(demo.url, BTC)
    visit.wait_for(f"data.candles === '{held}'")
    page.get_by_role("application").focus()
    for _ in range(3):
        page.keyboard.press("PageUp")
    expect(page.get_by_role("button", name="Go to the newest candle")).to_be_visible()
    holding = False
    for socket, text in waiting:
        socket.send(text)
    visit.wait_for(f"Number(data.candles) > {3 * held}")
    facts = visit.facts()
    assert facts.without_gap_or_duplicate
    visit.wait_for(f"data.viewFrom === '{facts.first}'")  # the chart scrolls with the next frame


def test_a_series_that_the_service_refuses_is_explained(visit: Visit, demo: Running) -> None:
    visit.open(demo.url, "binance:spot:NOSUCH/USDT:1m")
    expect(visit.page.locator("#empty")).to_contain_text("The service refuses it: ")
    expect(visit.page.locator("#empty")).to_contain_text("NOSUCH/USDT")
    # Chromium reports the 404 that the page explains.
    assert all("404" in error for error in visit.console_errors)
    visit.console_errors.clear()
    visit.open(demo.url)
    visit.wait_until_live(BTC)


def test_an_address_that_is_no_series_id_is_looked_up_or_reported(visit: Visit, demo: Running) -> None:
    visit.open(demo.url, "ETHUSDT")
    visit.wait_until_live(ETH)
    assert visit.page.url == f"{demo.url}?series={ETH}"
    visit.open(demo.url, "NOSUCHUSDT")
    expect(visit.page.locator("#empty")).to_contain_text("No series “NOSUCHUSDT”")
    assert visit.page.url.endswith("?series=NOSUCHUSDT")


def test_the_way_back_to_an_address_without_a_series_shows_no_series(visit: Visit, demo: Running) -> None:
    page = visit.page
    visit.open(demo.url, "NOSUCHUSDT")
    expect(page.locator("#empty")).to_contain_text("No series “NOSUCHUSDT”")
    page.locator("#empty").get_by_role("button", name="Choose a series").click()
    page.keyboard.type("btc spot")
    page.keyboard.press("Enter")
    visit.wait_until_live(BTC)
    page.go_back()
    expect(page.locator("#empty")).to_contain_text("No series “NOSUCHUSDT”")
    visit.wait_for("data.candles === '0' && data.series === ''")
    expect(page.locator("#legend")).to_be_hidden()
    expect(page.locator("#choose")).to_have_text("Choose a series")
    assert page.title() == "klinesync"
    page.go_forward()
    visit.wait_until_live(BTC)
    expect(page.locator("#empty")).to_be_hidden()


def test_a_gap_that_is_confirmed_empty_is_shown_so_after_a_page_load(visit: Visit, demo: Running) -> None:
    def on_history(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        gone = body["candles"][-5:-3]
        body["candles"] = [candle for candle in body["candles"] if candle not in gone]
        start = gone[0]["candle_time"]
        body["gaps"] = [{"start_time": start, "end_time": start + 2 * STEP_S, "state": "confirmed_empty"}]
        route.fulfill(response=answer, json=body)

    visit.page.route(re.compile(r"/api/market/candles\?.*&limit=1000$"), on_history)
    visit.open(demo.url, BTC)
    visit.wait_for("data.gaps === '1' && data.gapStates === 'confirmed_empty'")
    expect(visit.page.locator("#gaps")).to_have_text("1 gap, 2 candles missing: the exchange has none")


def test_a_service_without_a_whitelist_leads_to_the_picker(visit: Visit, demo: Running) -> None:
    visit.page.route("**/api/market/whitelist", lambda route: route.fulfill(json={"series_ids": []}))
    visit.open(demo.url)
    expect(visit.page.locator("#empty")).to_contain_text("The whitelist of this service is empty.")
    visit.page.locator("#empty").get_by_role("button", name="Choose a series").click()
    visit.page.keyboard.type("btc/usdt")
    expect(visit.page.get_by_role("option", selected=True)).to_contain_text("not followed")
    visit.page.keyboard.press("Enter")
    visit.wait_until_live(BTC)


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_narrow_page_shows_everything_without_scrolling_sideways(visit: Visit, demo: Running, scheme: str) -> None:
    visit.page.set_viewport_size({"width": 360, "height": 640})
    visit.page.emulate_media(color_scheme="light" if scheme == "light" else "dark")
    visit.open(demo.url, BTC)
    visit.wait_until_live(BTC)
    assert visit.page.evaluate("() => document.documentElement.scrollWidth") == 360
    background = visit.page.evaluate("() => getComputedStyle(document.querySelector('.stage')).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    expect(visit.page.locator("#price")).to_be_in_viewport()
    expect(visit.page.locator("#status")).to_be_in_viewport()


def test_the_page_resumes_after_a_killed_service_without_a_gap_or_a_duplicate(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    # The exchange goes on while the service is down, so that the page misses candles.
    with klinesync(tmp_path, "the simulated exchange listens on", "sim", "--speed", "60") as exchange:
        ws_url = exchange.url.replace("http://", "ws://")
        flags = ["--whitelist", BTC, "--database-url", f"sqlite:///{tmp_path}/candles.sqlite"]
        for market in ("spot", "futures"):
            flags += [f"--binance-{market}-rest-url", exchange.url, f"--binance-{market}-ws-url", ws_url]
        with klinesync(tmp_path, "klinesync serves", "serve", "--port", "0", *flags) as service:
            visit.open(service.url, BTC)
            visit.wait_until_live(BTC)
            start = visit.facts()
            visit.wait_for(f"Number(data.lastClosed) >= {start.last_closed + 2 * STEP_S} && data.lastForming")
            assert visit.console_errors == []
            service.process.kill()
            visit.wait_for("data.state === 'reconnecting'")
            expect(page.get_by_role("alert")).to_contain_text("Not connected since")
            expect(page.locator("#status-text")).to_have_text("Not connected")
            assert page.title().startswith("Not connected")
        gone = visit.facts()
        with klinesync(tmp_path, "klinesync serves", "serve", "--port", service.port, *flags):
            visit.wait_for(f"data.state === 'live' && Number(data.lastClosed) >= {gone.last_closed + 5 * STEP_S}")
            expect(page.get_by_role("alert")).to_be_hidden()
            back = visit.facts()
            page.goto("about:blank")  # before the service ends, which would be a console error
    assert back.first == start.first, "the history was loaded again instead of resumed"
    assert back.without_gap_or_duplicate
    assert all("net::ERR_" in error for error in visit.console_errors), "other errors than an unreachable service"
    visit.console_errors.clear()


def test_the_lamp_is_not_live_while_the_exchange_is_dead_and_says_why(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    flags = ["--whitelist", BTC, "--database-url", f"sqlite:///{tmp_path}/candles.sqlite"]
    with klinesync(tmp_path, "the simulated exchange listens on", "sim", "--speed", "60") as exchange:
        ws_url = exchange.url.replace("http://", "ws://")
        for market in ("spot", "futures"):
            flags += [f"--binance-{market}-rest-url", exchange.url, f"--binance-{market}-ws-url", ws_url]
        with klinesync(tmp_path, "klinesync serves", "serve", "--port", "0", *flags) as service:
            visit.open(service.url, BTC)
            visit.wait_for("data.lamp === 'good' && data.lampLabel === 'Live' && Number(data.age) < 10")
            assert page.title().endswith("BTC/USDT 1m · klinesync")
            exchange.process.kill()
            visit.wait_for("data.lamp === 'bad'")
            assert visit.facts().state == "live", "the page itself is connected"
            expect(page.locator("#status-text")).to_have_text("Exchange down")
            assert page.title().startswith("Exchange down")
            expect(page.locator("#notice-stream")).to_be_visible()
            page.locator("#status").click()
            expect(page.locator("#panel-facts")).to_contain_text("an exchange is unreachable")
            with klinesync(
                tmp_path, "the simulated exchange listens on", "sim", "--speed", "60", "--port", exchange.port
            ):
                visit.wait_for("data.lamp === 'good'")
                expect(page.locator("#notice-stream")).to_be_hidden()
                assert not page.title().startswith("Exchange down")
                page.goto("about:blank")


def pixels(visit: Visit, *colors: str) -> list[int]:
    """The number of pixels of the chart in each of these colours."""
    counts = visit.page.evaluate(COUNT_DRAWING_PIXELS, [int(color[1:], 16) for color in colors])
    assert isinstance(counts, list)
    return counts


@dataclass
class DrawingRoute:
    """Intercepts the page's requests for draw deltas: records them, and can change the answers."""

    requests: list[dict[str, str]] = field(default_factory=list)
    lagging: bool = False
    # Added to the epoch, and to the values of the average.
    later_epoch: int = 0
    shift: float = 0.0

    def answer(self, route: Route) -> None:
        query = urlsplit(route.request.url).query
        self.requests.append({name: values[0] for name, values in parse_qs(query).items()})
        if self.lagging:
            code = "ledger_out_of_sync:overlay"
            route.fulfill(status=409, json={"detail": code, "code": code})
        elif not self.later_epoch:
            route.continue_()
        else:
            # The service answers a cursor of an old epoch with everything.
            answer = route.fetch(url=re.sub(r"&(cursor_version_id|cursor_point_time|epoch)=\d+", "", route.request.url))
            delta = answer.json()
            delta["epoch"] += self.later_epoch
            for point in delta["series_points"]["sma_20"]:
                point["value"] += self.shift
            route.fulfill(json=delta)


def drawn(visit: Visit, demo: Running) -> DrawingRoute:
    """Opens BTC, and waits for drawings up to the newest candle."""
    deltas = DrawingRoute()
    visit.page.route("**/api/draw/delta?*", deltas.answer)
    visit.open(demo.url, BTC)
    visit.wait_until_live(BTC)
    visit.wait_for("data.drawing === 'ready' && Number(data.lines) > 0 && Number(data.drawings) > 3")
    return deltas


def test_drawings_follow_the_live_candle_with_a_cursor(visit: Visit, demo: Running) -> None:
    deltas = drawn(visit, demo)
    start = visit.facts()
    visit.wait_for(f"Number(data.drawnTo) >= {start.last_closed + 3 * STEP_S}")
    assert "cursor_version_id" not in deltas.requests[0]
    newest = [query for query in deltas.requests if "cursor_version_id" in query][-1]
    assert "epoch" in newest
    assert int(newest["cursor_point_time"]) > start.first
    readings = visit.page.locator("#readings")
    for label in ("SMA(20)", "EMA(21)", "BBANDS(20) upperband"):
        expect(readings).to_contain_text(label)
    expect(readings).not_to_contain_text("RSI")
    pivots, pens = pixels(visit, RESISTANCE_COLOR, PEN_COLOR)
    assert pivots > 20
    assert pens > 20
    assert visit.facts().without_gap_or_duplicate


def test_layers_that_the_reader_hides_stay_hidden(visit: Visit, demo: Running) -> None:
    page = visit.page
    drawn(visit, demo)
    # SMA, EMA, RSI and ATR have one line, BBANDS and MACD three.
    visit.wait_for("Number(data.lines) === 10")
    page.get_by_role("button", name="Indicators and drawings").click()
    page.get_by_role("checkbox", name="Pens", exact=True).uncheck()
    page.get_by_role("checkbox", name="MACD(12,26,9)", exact=True).uncheck()
    visit.wait_for("Number(data.lines) === 7")
    assert pixels(visit, PEN_COLOR) == [0]
    page.get_by_role("checkbox", name="Confirmed pens").check()
    expect(page.get_by_role("checkbox", name="Pens", exact=True)).to_be_checked()

    page.reload()
    visit.wait_until_live(BTC)
    visit.wait_for("data.drawing === 'ready' && Number(data.lines) === 7")
    page.get_by_role("button", name="Indicators and drawings").click()
    expect(page.get_by_role("checkbox", name="Confirmed pens")).to_be_checked()
    expect(page.get_by_role("checkbox", name="Extending pen")).not_to_be_checked()
    expect(page.get_by_role("checkbox", name="MACD(12,26,9)", exact=True)).not_to_be_checked()


def test_a_notice_says_that_drawings_lag_and_a_new_epoch_replaces_them(visit: Visit, demo: Running) -> None:
    deltas = drawn(visit, demo)
    notice = visit.page.locator("#notice-drawings")
    expect(notice).to_be_hidden()
    deltas.lagging = True
    expect(notice).to_have_text("Indicators and drawings are catching up with the candles.")
    deltas.later_epoch, deltas.shift = 1, -100_000.0
    deltas.lagging = False
    expect(notice).to_be_hidden()
    # Every average, also of earlier candles, has a value that the old epoch cannot have.
    visit.page.get_by_role("application").hover(position={"x": 400, "y": 300})
    expect(visit.page.locator("#badge")).to_have_text("closed")
    expect(visit.page.locator("#readings")).to_contain_text(re.compile(r"SMA\(20\) -?\d{1,2},\d{3}\."))
