"""How a map is made: attention, relevance, gradients, perturbation of tubes, influence of training clips."""
