"""Training: recipes, exact resume, logging, and publishing on the Hub."""
