"""A real model server: llama.cpp inside `xllamacpp`, on a port of the kernel's choice.

`python -m demo.model_server --model FILE [--port N]` serves until SIGTERM or SIGINT. It is the
stand-in for whatever runs on a user's GPU host, knows nothing of tunnels, and wants no key.
"""

import argparse
import importlib
import json
import signal
import sys
from pathlib import Path
from typing import Any

MODEL_NAME = "smollm2"
CONTEXT_TOKENS = 8192
PARALLEL_ANSWERS = 4
THREADS = 2


def serve(model: Path, port: int) -> int:
    """Load the model, say where it is served, and wait to be ended."""
    # Untyped, slow to load, and made for Linux and macOS only.
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {MODEL_NAME}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = PARALLEL_ANSWERS
    params.cpuparams.n_threads = THREADS
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    server = xllamacpp.Server(params)
    ready = {"event": "model_server.ready", "url": server.listening_address}
    print(json.dumps(ready), flush=True)
    signal.sigwait(ends)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m demo.model_server")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    sys.exit(serve(options.model, options.port))
