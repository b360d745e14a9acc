"""Is this training well? What the training doctor looks for, and which rate to begin with."""
