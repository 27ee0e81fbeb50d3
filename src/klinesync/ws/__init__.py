"""The WebSocket protocol, subscriptions, and the hub that publishes to all subscribers."""
