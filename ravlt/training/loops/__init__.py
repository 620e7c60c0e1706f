"""Training loops that resume exactly."""
