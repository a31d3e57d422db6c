"""What a part is shown."""
