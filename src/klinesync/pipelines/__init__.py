"""The write path: the only writer, and what it computes within its transactions."""
