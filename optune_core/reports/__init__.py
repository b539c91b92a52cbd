"""Reports about runs: the page of a run, pages in Prefect's UI, and the chart kit that draws their pictures."""
