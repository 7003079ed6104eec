"""A warehouse site: cameras, rules, alarms, and what was missed."""
