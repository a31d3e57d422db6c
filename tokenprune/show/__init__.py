"""What was kept, for people to look at."""
