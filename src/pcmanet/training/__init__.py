"""Training that can be trusted: recipes, an exact resume, trackers, and the way to the Hub."""
