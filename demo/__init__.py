"""The whole chain on one machine: how its programs are started, watched and stopped.

`python -m demo` shows it to a person; the system tests and the benchmark start their processes
with the same code.
"""
