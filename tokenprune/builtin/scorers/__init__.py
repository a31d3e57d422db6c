"""Built-in scorers: one method, one file."""
