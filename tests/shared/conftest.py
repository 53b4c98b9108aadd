from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture
def structlog_as_before() -> Iterator[None]:
    """Take back what the test does to structlog; loggers that modules made go by it as well."""
    is_configured, config = structlog.is_configured(), structlog.get_config()
    yield
    if is_configured:
        structlog.configure(**config)
    else:
        structlog.reset_defaults()
