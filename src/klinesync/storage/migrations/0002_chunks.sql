-- The newest candles of a series are rows of `candle`; those before them are packed by the hundreds, column by column
-- (klinesync.storage.chunks): a page of 2,000 is read in ten steps, and a candle takes 48 bytes.
-- chunk_id is series_no << 32 | chunk: the chunks of one series lie together, in the order of time. A series' chunks all
-- lie before its rows. Rows from before this version are packed when their series' head enters its next chunk.
CREATE TABLE candle_chunk (
    chunk_id INTEGER PRIMARY KEY,
    candles BLOB NOT NULL
) STRICT;
