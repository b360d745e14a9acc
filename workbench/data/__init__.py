"""files on disk -> uint8 clips (B, T, H, W, C) with labels."""
