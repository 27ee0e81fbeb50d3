"""Any other exchange, through ccxt."""
