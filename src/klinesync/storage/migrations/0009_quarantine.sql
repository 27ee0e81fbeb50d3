-- Damaged candles that were taken out of their series: the bytes as they were found, and why they are no candles.
-- `healing` is 1 until every candle of the span is stored again, or settled as a gap. Only the newest rows are kept.
CREATE TABLE quarantine (
    quarantine_no INTEGER PRIMARY KEY,
    series_id TEXT NOT NULL,
    start_time INTEGER NOT NULL,
    end_time INTEGER NOT NULL,
    found_at INTEGER NOT NULL,
    why TEXT NOT NULL,
    bytes BLOB NOT NULL,
    healing INTEGER NOT NULL
) STRICT;

-- The first open time of a series, so that candles that are gone from its beginning are missed. NULL: not recorded yet.
ALTER TABLE series ADD COLUMN first_time INTEGER;
