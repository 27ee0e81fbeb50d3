"""Local doubles of venues that are followed through ccxt: their REST, and the streams of two of them, on loopback."""
