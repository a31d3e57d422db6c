"""Built-in adapters: a family in one file, what several share (towers, grids), and `forms`: families as models."""
