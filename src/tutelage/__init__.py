"""tutelage: from a text-completing language model to one that does what people want, and proof at every step."""

__version__ = "0.1.0"
