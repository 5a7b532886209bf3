"""Measures of decoder rows: whether other rows rebuild them, and whether another seed finds them again."""
