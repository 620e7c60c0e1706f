"""Costs, speed and attention of models: the libraries of tools/analysis_tools."""
