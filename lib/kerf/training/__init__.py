"""Learning back what a step lost: scales, zero points, codes and weights, block by block against the float model."""
