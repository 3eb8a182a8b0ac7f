"""Where labelled images come from, one kind of source per file; each returns `Samples` and the class names."""
