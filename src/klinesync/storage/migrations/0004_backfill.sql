-- What history was asked for at length and is not read yet: open times from start_time to end_time (exclusive). A series
-- of which nothing is stored has no number.
CREATE TABLE backfill (
    series_id TEXT NOT NULL,
    start_time INTEGER NOT NULL,
    end_time INTEGER NOT NULL,
    PRIMARY KEY (series_id, start_time, end_time)
) STRICT, WITHOUT ROWID;
