"""One training step, its loss and optimiser, and what happens around the steps."""
