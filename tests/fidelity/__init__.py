"""The proof that the router changes nothing it need not: each case straight and on every route."""
