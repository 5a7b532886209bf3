"""What a run found, to look at: the store, the questions it answers, and the pages."""
