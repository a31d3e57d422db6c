"""The version, for whoever wants nothing else."""

__version__ = "0.1.0"
