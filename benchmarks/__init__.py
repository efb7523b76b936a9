"""Times of this project's flows beside those of other libraries, on the same work in one run."""
