"""Guards against losses that are not finite, wrong class counts and SIGTERM."""
