"""Language models: loading, saving, heads, and how tokens reach them."""
