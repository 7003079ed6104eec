"""Request and response bodies. Requests are strict: a wrong type or an unknown field is a 400 that names it."""
