"""Time and memory of models, and the benchmark on a GPU."""
