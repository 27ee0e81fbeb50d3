"""klinesync: one trustworthy source of exchange candles for charts, strategies and bots."""

__version__ = "0.1.0"
