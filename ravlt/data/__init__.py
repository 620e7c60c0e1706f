"""Data sets: the built-in one, and checks of any other."""
