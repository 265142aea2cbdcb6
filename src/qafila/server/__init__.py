"""The server: OpenAI's, Anthropic's and Ollama's APIs and a chat page over `ChatClient`s."""
