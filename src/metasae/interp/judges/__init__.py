"""Who answers: any OpenAI-compatible server or a model in this process."""
