"""A link over a real WebSocket.

`websocket` alone knows the library; `session` drives the gateway's or the agent's end;
`stream` presents one stream as an asyncio transport; `accept` guards a listening socket.
"""
