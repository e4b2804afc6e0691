"""Runs beside each other, without a browser or a server: what differs, what came of it, and whether that is chance."""
