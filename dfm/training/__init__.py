"""The training of a job apart from where it runs: plan, inputs, rounds, progress, publication, checkpoint, memory.

Imports averaging and model; never Dask.
"""
