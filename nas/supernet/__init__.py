"""The mechanism of a search: what a model with choices in it is made of."""
