"""LiteLLM's proxy as a chain, from an environment of its own (`make bench-litellm`).

One worker, its telemetry off, one key that it checks: what a gateway of ours does, too.
"""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from demo.processes import Process
from demo.stack import HOST, free_port

from .chains import Chain
from .comparisons import LITELLM

PROGRAM = Path(".cache/litellm/bin/litellm").absolute()
KEY = "sk-bench"
START_S = 60.0
ENVIRON = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
"""It fetches no price list, and reads no `.env`."""


def litellm_is_installed() -> bool:
    """Whether `make bench-litellm` has been run."""
    return PROGRAM.exists()


@asynccontextmanager
async def litellm(upstream_port: int, scratch: Path) -> AsyncGenerator[Chain, None]:
    """The proxy before the upstream, as its own documentation sets it up."""
    directory = scratch / "litellm"
    directory.mkdir()
    config, port = directory / "config.yaml", free_port()
    config.write_text(json.dumps(settings(upstream_port)))  # JSON is YAML
    command = [
        *(str(PROGRAM), "--config", str(config), "--telemetry", "False"),
        *("--host", HOST, "--port", str(port), "--num_workers", "1"),
    ]
    async with Process("litellm", command, directory=directory, environ=ENVIRON) as proxy:
        await proxy.line("Uvicorn running on", START_S)
        children = psutil.Process(proxy.pid).children(recursive=True)
        pids = [proxy.pid, *(child.pid for child in children)]
        yield Chain(LITELLM, port, {"authorization": f"Bearer {KEY}"}, {"gateway": pids})


def settings(upstream_port: int) -> object:
    """One model, known to it by the name that the load asks for."""
    upstream = {
        "model": "openai/bench",
        "api_base": f"http://{HOST}:{upstream_port}/v1",
        "api_key": "unused",
    }
    return {
        "model_list": [{"model_name": "bench", "litellm_params": upstream}],
        "general_settings": {"master_key": KEY},
    }
