"""A job on Kubernetes: its DaskJob made, created, followed, and judged by what it leaves in storage."""
