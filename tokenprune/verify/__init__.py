"""Whether pruning holds for a model type that nobody wrote a file for: tiny random models of any config."""
