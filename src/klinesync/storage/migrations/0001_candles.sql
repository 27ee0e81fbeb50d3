-- Closed candles. A series is a small number, so that a row is about 60 bytes; rows of one series lie together.
CREATE TABLE series (
    series_no INTEGER PRIMARY KEY,
    series_id TEXT NOT NULL UNIQUE
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
