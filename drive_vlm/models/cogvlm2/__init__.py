"""CogVLM2-llama3-chat-19B: an EVA2 tower of 1,344 pixels and a Llama 3 whose layers hold a second expert for picture tokens."""
