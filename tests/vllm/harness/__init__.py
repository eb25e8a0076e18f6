"""What the tests with real vLLM engines stand on: tiny models, engines as processes, a router."""
