-- The order flow of a candle: what it traded in the quote asset, in how many trades, and what takers bought of both
-- volumes. NULL where the source does not tell. Chunks have these columns from now on; those of before are 48 bytes a
-- candle, and are read as they are (klinesync.storage.chunks).
ALTER TABLE candle ADD COLUMN quote_volume REAL;
ALTER TABLE candle ADD COLUMN trades INTEGER;
ALTER TABLE candle ADD COLUMN taker_buy_volume REAL;
ALTER TABLE candle ADD COLUMN taker_buy_quote_volume REAL;
ALTER TABLE candle_revision ADD COLUMN quote_volume REAL;
ALTER TABLE candle_revision ADD COLUMN trades INTEGER;
ALTER TABLE candle_revision ADD COLUMN taker_buy_volume REAL;
ALTER TABLE candle_revision ADD COLUMN taker_buy_quote_volume REAL;
