"""Files and pipes that are translated: blocks of lines in, rows in a format out, and a part file between the two."""
