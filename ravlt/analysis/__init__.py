"""Libraries behind tools/analysis_tools: what a model costs and computes."""
