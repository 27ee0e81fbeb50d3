"""Application services: no web framework, no environment."""
