"""Tables, charts and pages of what was found."""
