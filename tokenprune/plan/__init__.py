"""Where tokens go, how many stay, and what that saves."""
