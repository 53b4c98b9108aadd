"""The ways to an answer: each provider is an `Upstream` that the router can ask."""
