"""Candles in files: freqtrade's, exchange archives, tables; read and written without freqtrade or pandas."""
