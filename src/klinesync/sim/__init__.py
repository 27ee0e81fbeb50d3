"""A local exchange that speaks Binance's public market-data protocol, for tests, demos and work without a network.

Everything here but `server` is free of asyncio, sockets and clocks: what the exchange answers and streams is a
function of the data, the seed and the time that is passed in.
"""
