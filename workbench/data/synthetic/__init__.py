"""Clips made by a program, whose labels are therefore true."""
