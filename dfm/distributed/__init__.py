"""The training loop on Dask: who holds what (placement, prepare), one round (rounds), the whole run (train), scoring."""
