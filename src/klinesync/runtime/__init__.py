"""What every room runs on: configuration, clocks, logs, metrics, HTTP, and bulkheads for tasks."""
