"""Pure maths on tensors: each function is the equation of its docstring and knows nothing of the rest of the house.

Shapes: P prompts, G answers per prompt (group), B rows, T answer tokens, V vocabulary.
A `mask` [B, T] is true (or 1) on the tokens the policy chose; it may have holes (dialogues of several turns).
"""
