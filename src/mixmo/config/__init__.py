"""Settings, recipes, and how they become a checked plan of a run."""
