"""Documents of people: files of many kinds to text, text to passages that know the place they come from."""
