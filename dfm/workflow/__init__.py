"""The steps of a night: data check, training, gate, registry, report.

Imports launch.
"""
