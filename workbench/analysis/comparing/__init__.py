"""What two runs differ in: setups, scores, classes, clips; each question one module."""
