"""A whole Prefect + PostgreSQL + S3 stack on loopback, for one machine: `python -m deployments.local up`."""
