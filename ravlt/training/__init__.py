"""Training runs: command lines, and hooks that protect and record a run."""
