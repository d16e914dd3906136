"""`experts`: how alike experts are, by what they do and by what they see."""
