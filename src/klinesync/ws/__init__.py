"""From us to the clients: the WebSocket protocol, subscriptions, and the hub that publishes to all of them."""
