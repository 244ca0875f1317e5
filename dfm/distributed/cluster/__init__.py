"""A Dask cluster: connecting, watching, admitting workers, bringing dfm along."""
