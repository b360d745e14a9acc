"""What becomes of a run's score when its clips are damaged, lose their order, or come from elsewhere."""
