"""What is true of a prompt batch from its prefill to its last decode step."""
