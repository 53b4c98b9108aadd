"""Real client libraries, in pinned versions, against a running gateway: `make clients`.

Each library has an environment of its own under `.cache/clients`. A scripted provider plays
documented answers and faults; the library's script reports what the application saw, and this
package adds what the provider saw.
"""

import sys
from pathlib import Path

# The tests' support modules are imported as `support`, as pytest has it.
sys.path.append(str(Path(__file__).parents[1]))
