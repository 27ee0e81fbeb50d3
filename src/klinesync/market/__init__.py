"""HTTP and WebSocket: protocol in and out, and the composition of the running parts."""
