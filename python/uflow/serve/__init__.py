"""The service on the line: images come by HTTP, verdicts go back, and all of it is kept. Needs no torch."""
