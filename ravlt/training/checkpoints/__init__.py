"""When checkpoints are written, and which one a run resumes from."""
