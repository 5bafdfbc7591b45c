"""The report: one HTML file made from a run's files, with nothing from elsewhere in it (`make report`)."""
