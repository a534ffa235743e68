"""Pure functions about products: names, where they go, manifests, digests, records."""
