"""Pruning inside the vision tower, and reading its states."""
