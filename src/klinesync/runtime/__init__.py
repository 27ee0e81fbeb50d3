"""Foundations of all rooms: configuration, clocks, logs, metrics, HTTP, and bulkheads for tasks."""
