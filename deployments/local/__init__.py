"""A complete stack of PostgreSQL, S3 and Prefect on loopback, for one machine: `python -m deployments.local up`.

stack         the parts together: order of their starts, settings, deployment of the flows
postgres      PostgreSQL, Prefect's database
seaweedfs     SeaweedFS, the S3 server
orchestrator  the Prefect server, its work pools, workers and automations
processes     background processes that outlive the shell
ports         free ports on loopback that stay the same
"""
