"""Whether a map can be trusted: perturbation, randomisation, planted truth, and the priors it must beat."""
