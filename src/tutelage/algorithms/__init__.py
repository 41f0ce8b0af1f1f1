"""Methods: one frozen dataclass each, pure maths from `functional`, no loop of their own."""
