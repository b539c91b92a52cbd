"""The iteration on one screen, as Prefect flows. No method, no storage layout here."""
