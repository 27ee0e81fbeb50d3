"""Overlays: drawing instructions made from factor output."""
