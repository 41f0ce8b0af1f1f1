"""The web side of the annotation app: routes, who may use them, and what protects them."""
