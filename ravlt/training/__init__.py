"""Training runs: command lines, and what protects and records a run."""
