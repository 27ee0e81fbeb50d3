-- What factors and overlays have stored of a series. One row a series: up to which candle they have come (NULL: none),
-- what computed it, and two counters: the epoch rises with every rewind, the record with every change.
CREATE TABLE ledger (
    series_no INTEGER PRIMARY KEY REFERENCES series,
    fingerprint TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    record_id INTEGER NOT NULL,
    factor_head INTEGER,
    overlay_head INTEGER,
    version_id INTEGER NOT NULL
) STRICT;

-- What a factor said at a candle (JSON); event_no counts within the candle.
CREATE TABLE factor_event (
    series_no INTEGER NOT NULL REFERENCES series,
    visible_time INTEGER NOT NULL,
    event_no INTEGER NOT NULL,
    factor TEXT NOT NULL,
    event TEXT NOT NULL,
    PRIMARY KEY (series_no, visible_time, event_no)
) STRICT, WITHOUT ROWID;

-- Drawings that never change, numbered in candle order (JSON).
CREATE TABLE drawing (
    series_no INTEGER NOT NULL REFERENCES series,
    version_id INTEGER NOT NULL,
    visible_time INTEGER NOT NULL,
    instruction TEXT NOT NULL,
    PRIMARY KEY (series_no, version_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX drawing_by_time ON drawing (series_no, visible_time);

-- The factors' states after the candle of `time`. Those that are not kept make room for the next one.
CREATE TABLE checkpoint (
    series_no INTEGER NOT NULL REFERENCES series,
    time INTEGER NOT NULL,
    kept INTEGER NOT NULL,
    states BLOB NOT NULL,
    PRIMARY KEY (series_no, time)
) STRICT;
