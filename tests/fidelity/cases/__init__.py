"""All cases, family by family."""

from itertools import chain
from typing import Final

from fidelity.cases import (
    answers,
    endpoints,
    errors,
    failures,
    framing,
    requests,
    streams,
)
from fidelity.model import Case

CASES: Final[tuple[Case, ...]] = tuple(
    chain(
        answers.CASES,
        streams.CASES,
        endpoints.CASES,
        framing.CASES,
        errors.CASES,
        failures.CASES,
        requests.CASES,
    )
)
