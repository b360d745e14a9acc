"""a setup and clips -> a Run."""
