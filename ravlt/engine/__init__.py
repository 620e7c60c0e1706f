"""What surrounds a training run: hooks, checks before it starts, command lines."""
