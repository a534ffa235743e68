"""The catalog: an index of the store in a database (design section 5); rebuilt from records."""
