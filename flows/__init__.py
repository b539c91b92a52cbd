"""The iteration on one screen, as Prefect flows. No method, no storage layout here."""

from tasks.logs import quiet_known_errors

quiet_known_errors()
