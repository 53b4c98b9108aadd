"""One bad tenant, host or store: attacks on whole chains, and what others notice of them."""
