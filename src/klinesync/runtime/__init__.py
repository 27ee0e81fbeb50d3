"""What every room runs on: configuration and clocks."""
