"""Tables, figures and the page, from result records."""
