"""Words whose senses are known."""
