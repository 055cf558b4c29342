"""The formats of lists: their recognition, and the reader of each. A reader yields the rows of a file."""
