"""The OPTune method and its machinery, usable without Prefect."""

__version__ = "0.1.0"
