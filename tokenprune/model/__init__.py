"""A model: its anatomy, its hooks, its ranks."""
