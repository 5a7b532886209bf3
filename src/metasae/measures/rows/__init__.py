"""What decoder rows are made of, and whether another seed finds them again."""
