"""Sweeps: many runs from one file, one after the other or on Ray, and which of them to compare."""
