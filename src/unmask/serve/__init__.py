"""A server for one model: OpenAI's API over the engine, the player at its root."""
