"""Rules as data, decisions with their reasons, and the fairness of the score."""
