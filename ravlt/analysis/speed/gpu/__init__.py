"""The benchmark on a GPU: tests, operators, backbones and training steps."""
