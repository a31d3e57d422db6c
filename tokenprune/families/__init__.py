"""Built-in adapters: a family in one file, beside what several share (towers, grids) and `forms`, families as models."""
