"""The libraries under test: how each is started, and which cases it has."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .python.cases import SURVIVED

ENVIRONMENTS: Final = Path(".cache/clients").absolute()
JS_SOURCES: Final = Path(__file__).with_name("js")
OPENAI_ONLY: Final = frozenset({"embeddings_float", "embeddings_base64", "image_generation"})
CASES: Final = (
    "chat",
    "stream",
    "tools",
    "tools_stream",
    "json_schema",
    "json_schema_stream",
    "embeddings_float",
    "embeddings_base64",
    "image_input",
    "image_generation",
    "abort",
    "wrong_key",
    "api_key",
    "x_api_key",
    "rate_limit",
    "survives_429",
    *(f"survives_{status}" for status in SURVIVED),
)
ANTHROPIC_ONLY: Final = frozenset({"api_key", "x_api_key"})


@dataclass(frozen=True, slots=True)
class Library:
    """One client library."""

    name: str
    command: tuple[str, ...]
    lacks: frozenset[str]
    """Cases that it has no call for."""
    environ: Mapping[str, str] = field(default_factory=dict[str, str])
    numbers_its_tries: bool = True
    """Whether it sends `x-stainless-retry-count`, so that the gateway leaves retries to it."""

    @property
    def program(self) -> Path:
        """The interpreter of its environment."""
        return Path(self.command[0])


def python(name: str, lacks: frozenset[str], **environ: str) -> Library:
    """A library for Python, run from the root of the repository."""
    program = ENVIRONMENTS / name / "bin" / "python"
    command = (str(program), "-m", f"tests.clients.python.{name}_cases")
    return Library(f"{name} (Python)", command, lacks, environ)


def javascript(name: str, lacks: frozenset[str], *, numbers_its_tries: bool = True) -> Library:
    """A library for Node.js, run beside its `node_modules`."""
    program = ENVIRONMENTS / "node" / "bin" / "node"
    script = ENVIRONMENTS / "js" / f"{name}_cases.mjs"
    command = (str(program), str(script))
    return Library(f"{name} (JS)", command, lacks, numbers_its_tries=numbers_its_tries)


LIBRARIES: Final = (
    python("openai", ANTHROPIC_ONLY),
    javascript("openai", ANTHROPIC_ONLY),
    python("anthropic", OPENAI_ONLY),
    javascript("anthropic", OPENAI_ONLY),
    python("langchain", ANTHROPIC_ONLY | {"image_generation"}),
    javascript("langchain", ANTHROPIC_ONLY | {"image_generation", "survives_409"}),
    python("litellm", ANTHROPIC_ONLY, LITELLM_LOCAL_MODEL_COST_MAP="True"),
    javascript("vercel", ANTHROPIC_ONLY | {"embeddings_base64"}, numbers_its_tries=False),
)
