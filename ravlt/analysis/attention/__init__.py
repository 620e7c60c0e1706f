"""Maps of attention, and ranks of KV buffers and attention outputs."""
