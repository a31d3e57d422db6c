"""The parts that come with tokenprune."""
