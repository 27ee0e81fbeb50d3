"""The store: closed candles, durably."""
