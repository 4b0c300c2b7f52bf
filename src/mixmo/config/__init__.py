"""Settings and recipes, and the checked plan of a run that follows from them."""
