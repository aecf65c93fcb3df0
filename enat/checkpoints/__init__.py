"""Reading and writing of weight files."""
