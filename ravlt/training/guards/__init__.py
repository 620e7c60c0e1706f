"""Guards: against losses that are not finite, and against SIGTERM."""
