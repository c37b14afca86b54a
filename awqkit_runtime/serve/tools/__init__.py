"""Tools: formats of their calls, reading them, forcing them."""
