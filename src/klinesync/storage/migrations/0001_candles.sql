-- Closed candles. A series is a small number, so that a row is about 60 bytes; rows of one series lie together.
-- derived_from is set for series that are computed from another one's candles.
CREATE TABLE series (
    series_no INTEGER PRIMARY KEY,
    series_id TEXT NOT NULL UNIQUE,
    derived_from INTEGER REFERENCES series
) STRICT;

CREATE TABLE candle (
    series_no INTEGER NOT NULL REFERENCES series,
    time INTEGER NOT NULL,
    open REAL NOT NULL,
    high REAL NOT NULL,
    low REAL NOT NULL,
    close REAL NOT NULL,
    volume REAL NOT NULL,
    PRIMARY KEY (series_no, time)
) STRICT, WITHOUT ROWID;

-- What a closed candle was before it changed: its old values, when it changed, and what brought the new ones.
CREATE TABLE candle_revision (
    revision_no INTEGER PRIMARY KEY,
    series_no INTEGER NOT NULL REFERENCES series,
    time INTEGER NOT NULL,
    open REAL NOT NULL,
    high REAL NOT NULL,
    low REAL NOT NULL,
    close REAL NOT NULL,
    volume REAL NOT NULL,
    revised_at INTEGER NOT NULL,
    source TEXT NOT NULL
) STRICT;
CREATE INDEX candle_revision_of ON candle_revision (series_no, time);

-- The gap ledger: spans of missing open times between the first and the last candle, [start_time, end_time).
CREATE TABLE gap (
    series_no INTEGER NOT NULL REFERENCES series,
    start_time INTEGER NOT NULL,
    end_time INTEGER NOT NULL,
    state TEXT NOT NULL,
    proof TEXT,
    confirmed_at INTEGER,
    PRIMARY KEY (series_no, start_time)
) STRICT, WITHOUT ROWID;

-- How many transactions were committed: what a reader has seen of them is known by that number.
CREATE TABLE commit_count (commits INTEGER NOT NULL) STRICT;
INSERT INTO commit_count VALUES (0);
