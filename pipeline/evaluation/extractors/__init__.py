"""Feature extractors for Frechet distance and KID."""
