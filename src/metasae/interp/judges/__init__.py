"""The judges: any OpenAI-compatible server, or a model in this process."""
