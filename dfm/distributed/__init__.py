"""Training, preparation, prediction and monitoring as tasks of Dask.

Imports training.
"""
