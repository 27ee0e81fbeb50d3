"""Factors: deterministic functions of closed candles."""
