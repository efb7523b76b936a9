"""A small part of both data sets, kept in the repository so that tests and the smoke preset need no network."""
