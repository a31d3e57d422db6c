"""Built-in adapters: one model family, one file."""
