"""From the exchange: connections, history, and the splice of both, a feed per series."""
