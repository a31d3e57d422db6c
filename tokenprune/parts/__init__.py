"""What you write: interfaces of scorers, schedules, mergers and adapters, and the guard that calls them."""
