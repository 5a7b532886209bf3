"""Who answers: any OpenAI-compatible server, a model in this process, or a scripted reader of planted worlds."""
