"""The training of a job or a fit apart from where it runs: plan, steps, rounds, the loop, checkpoint, publication.

Imports averaging and model; never Dask.
"""
