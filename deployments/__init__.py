"""Where the flows run: deployments, work pools, and the local stack behind `make up`."""
