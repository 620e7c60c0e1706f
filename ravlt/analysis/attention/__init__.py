"""What attention layers attend to, and the ranks of their KV buffers and outputs."""
