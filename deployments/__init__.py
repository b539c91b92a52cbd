"""Deployments of the flows, and the local stack behind `make up`.

worker   a Prefect worker that lets its flow runs save their work when it is ended
local    PostgreSQL, S3, a Prefect server and two workers on this machine

prefect.yaml holds the deployments, automations.yaml what Prefect does by itself when a flow run is lost.
"""
