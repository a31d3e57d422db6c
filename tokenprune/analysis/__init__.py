"""What can be learnt about a model from its states."""
