"""Jobs on Kubernetes: manifests, sizes, the API, submitting and following."""
