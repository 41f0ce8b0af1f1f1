"""How good a model is: scores, win rates and the hidden gold rule, every number with an interval."""
