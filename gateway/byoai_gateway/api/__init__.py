"""The control plane's HTTP API: calls as data, served by aiohttp and described by OpenAPI."""
