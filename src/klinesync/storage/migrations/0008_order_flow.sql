-- The order flow of a candle: what it traded in the quote asset, in how many trades, and what takers bought of both
-- volumes. NULL where the source does not tell. Chunks have these columns from now on (klinesync.storage.chunks);
-- those of before are 48 bytes a candle, have no checksum, and are read as they are until they are packed anew.
ALTER TABLE candle ADD COLUMN quote_volume REAL;
ALTER TABLE candle ADD COLUMN trades INTEGER;
ALTER TABLE candle ADD COLUMN taker_buy_volume REAL;
ALTER TABLE candle ADD COLUMN taker_buy_quote_volume REAL;
ALTER TABLE candle_revision ADD COLUMN quote_volume REAL;
ALTER TABLE candle_revision ADD COLUMN trades INTEGER;
ALTER TABLE candle_revision ADD COLUMN taker_buy_volume REAL;
ALTER TABLE candle_revision ADD COLUMN taker_buy_quote_volume REAL;

-- Series whose chunks of before are not packed anew yet: the service does that, a few chunks at a time.
CREATE TABLE repacking (series_no INTEGER PRIMARY KEY REFERENCES series) STRICT;
INSERT INTO repacking SELECT series_no FROM series;
