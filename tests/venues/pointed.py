"""ccxt's own exchange objects, unmodified, with the addresses of local doubles."""

from __future__ import annotations

import re
from importlib import import_module

from klinesync.exchanges.ccxt.installed import Ccxt, Maker
from venues.venue import Venue

_SERVER = re.compile(r"^(http|ws)s?://[^/]+")


def maker(venue: Venue, *, timeout_s: float = 10.0) -> Maker:
    """ccxt's object of that venue. Needs ccxt. A faster venue allows proportionally more requests.

    timeout_s: ccxt's timeout of a request.
    """

    def make(name: str) -> Ccxt:
        kind = getattr(import_module("ccxt.pro"), venue.name)
        rate_limit_ms = venue.rate_limit_ms / venue.speed
        made = kind({"enableRateLimit": True, "rateLimit": rate_limit_ms, "timeout": int(timeout_s * 1000)})
        made.urls["api"] = _pointed(made.urls["api"], venue)
        if venue.answers_date_only:
            made.has["fetchTime"] = False
        if venue.is_polled:
            made.has["watchOHLCV"] = made.has["unWatchOHLCV"] = False
        exchange: Ccxt = made
        return exchange

    return make


def _pointed(urls: object, venue: Venue) -> object:
    if isinstance(urls, dict):
        return {name: _pointed(url, venue) for name, url in urls.items()}
    assert isinstance(urls, str), urls
    kind = _SERVER.match(urls)
    assert kind is not None, urls
    return _SERVER.sub(venue.http_url if kind[1] == "http" else venue.ws_url, urls)
