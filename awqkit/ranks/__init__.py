"""Processes that share one conversion: what each of them knows of the others, and how they meet."""
