"""A model behind OpenAI's HTTP API: the HTTP side here, the engine in a process of its own."""
