"""Checkpoints: write them, choose one to resume from, check that they fit."""
