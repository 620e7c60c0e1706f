"""Parameters and multiply-adds of models, and the model zoo."""
