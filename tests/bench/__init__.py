"""Measures whole chains side by side: `python -m tests.bench`. Never part of a test."""

import sys
from pathlib import Path

# The tests' support modules are imported as `support`, as pytest has it.
sys.path.append(str(Path(__file__).parents[1]))
