-- The newest events of each series and of each market (`scope`: binance:spot:BTC/USDT:1m, binance:spot), so that a
-- restart knows why candles are not there. event_no orders the events of all scopes; times are UTC milliseconds.
CREATE TABLE series_event (
    scope TEXT NOT NULL,
    event_no INTEGER NOT NULL,
    event TEXT NOT NULL,
    detail TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    since_ms INTEGER NOT NULL,
    times INTEGER NOT NULL,
    PRIMARY KEY (scope, event_no)
) STRICT, WITHOUT ROWID;
