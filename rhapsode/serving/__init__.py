"""HTTP in the OpenAI dialect, over the engine."""
