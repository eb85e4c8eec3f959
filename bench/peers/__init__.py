"""Servers to compare with: what the wire costs by itself, and what one would write without this project."""
