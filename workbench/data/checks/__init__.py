"""What the doctor looks at, one question to a module."""
