"""To the clients: the WebSocket protocol, sessions, and the hub that fans out."""
