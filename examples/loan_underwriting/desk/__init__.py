"""The desk: three agents on one case, effects that happen once, people where the policy wants them."""
