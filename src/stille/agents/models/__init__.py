"""Language models for agents."""
