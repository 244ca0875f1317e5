"""The training loop on Dask: who holds what (placement, prepare), one round (rounds), the run (train), scoring."""
