"""How right, how long and how expensive the answers of each method are, on the same questions."""
