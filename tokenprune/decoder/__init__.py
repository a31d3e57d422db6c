"""Pruning inside the decoder: one prefill, top to bottom."""
