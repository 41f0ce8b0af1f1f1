"""What answers are worth: rules, maths, reward models, the user's own functions, and their weighted sum."""
