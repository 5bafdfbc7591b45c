"""The report: one HTML file made of a run's files, with nothing from elsewhere (`make report`)."""
