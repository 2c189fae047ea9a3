"""Programs run segment by segment, compared with each other, and timed."""
