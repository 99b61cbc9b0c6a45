"""One module a verb; each has `main(words)`."""
