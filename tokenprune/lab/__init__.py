"""Measuring. It imports `api`, never the reverse."""
