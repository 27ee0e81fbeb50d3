"""The vocabulary: series, timeframes, candles, splice, errors. Pure, standard library only."""
