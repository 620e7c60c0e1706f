"""Inference: exact folds, and networks computed tile by tile."""
