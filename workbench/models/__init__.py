"""a pretrained transformer -> tokens (B, N, D) -> one output per task."""
