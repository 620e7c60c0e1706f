"""Parameters, multiply-adds and the model zoo."""
