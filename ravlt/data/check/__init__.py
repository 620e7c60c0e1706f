"""Checks of a user's data: annotations, images, label maps."""
