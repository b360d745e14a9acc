"""Why and where a run is wrong: calibration, suspect labels, failing groups of clips, maps of features, and marks."""
