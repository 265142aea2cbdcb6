"""Text: tokenizers, messages, chat formats, tool calls. Imports nothing else of ours."""
