"""The write path: the only writer of candles, with derived candles and ledgers in its transactions."""
