"""From probabilities to maps: pure functions of runs and arrays."""
