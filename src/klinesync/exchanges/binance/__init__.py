"""Binance: spot and USD-M futures, over its own REST and WebSocket protocols."""
