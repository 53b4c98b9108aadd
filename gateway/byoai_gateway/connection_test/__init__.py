"""Tests a connection to a provider before its settings are saved: stage by stage, in plain words.

Exactly what was submitted is tested. It knows neither what is saved nor HTTP's side of the call.
"""
